"""YAML of people's own: a key given twice is an error, where the last one would win without a word."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class Loader(yaml.SafeLoader):
    """Safe YAML in which every key of a mapping stands once."""

    def spelled(self, key: Any) -> str:
        """Keys that are spelled alike are one."""
        return str(key)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.spelled(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
