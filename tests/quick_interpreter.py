"""Run first where Triton interprets: its interpreter replaces `triton.language` in every call of one kernel by
another, which after the first changes nothing and takes a quarter of the time. Where Triton has no such functions,
nothing is done.
"""

from typing import Any

from triton.runtime import interpreter


def quicken() -> None:
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched = set[int]()

    def launch_anew(self: Any, *arguments: Any, **options: Any) -> None:
        patched.clear()
        launch(self, *arguments, **options)

    def patch_once(fn: Any) -> Any:
        """For the functions of a module; what a launch patches stays until it ends."""
        module = id(fn.__globals__)
        if module in patched:
            return None
        patched.add(module)
        return patch(fn)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_once


if all(hasattr(interpreter, name) for name in ("GridExecutor", "_patch_lang")):
    quicken()
