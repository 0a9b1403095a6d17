"""Small eval sets that a model of 135 M parameters answers partly: facts, sums, copying, JSON, tool calls.

    python benchmarks/eval_sets.py FOLDER

The same files every time. They show how the verdicts behave; they say nothing about a model worth deploying.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, Austria Vienna, "
    "Hungary Budapest, Poland Warsaw, Sweden Stockholm, Norway Oslo, Finland Helsinki, Denmark Copenhagen, "
    "Ireland Dublin, Belgium Brussels, Netherlands Amsterdam, Switzerland Bern, Russia Moscow, Ukraine Kyiv|Kiev, "
    "Turkey Ankara, Egypt Cairo, Kenya Nairobi, Nigeria Abuja, Ethiopia Addis, Morocco Rabat, Japan Tokyo, "
    "China Beijing, India Delhi, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Malaysia Lumpur, "
    "Australia Canberra, Canada Ottawa, Mexico Mexico, Cuba Havana, Peru Lima, Chile Santiago, Argentina Buenos, "
    "Brazil Bras[ií]lia, Colombia Bogot[aá], Venezuela Caracas, Iran Tehran, Iraq Baghdad, Syria Damascus, "
    "Lebanon Beirut, Jordan Amman, Israel Jerusalem, Nepal Kathmandu, Pakistan Islamabad"
)
OPPOSITES = (
    "hot cold, big small|little, up down, left right, day night, fast slow, happy sad|unhappy, rich poor, "
    "open closed?, hard soft|easy, light dark|heavy, old young|new, early late, wet dry, full empty, high low, "
    "strong weak, "
    "good bad|evil, first last, black white, love hate, war peace, buy sell, win lose, inside outside, true false, "
    "clean dirty, thick thin, loud quiet, near far, push pull, begin end, summer winter, north south, east west"
)
WORDS = "apple river stone cloud window garden silver market bridge candle forest button island mirror".split()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": says,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in fields.items()},
                "required": list(fields),
            },
        },
    }
    for name, says, fields in (
        ("get_weather", "Current weather in a city.", {"city": "string"}),
        ("add", "Sum of two numbers.", {"a": "number", "b": "number"}),
    )
]


def pairs(text: str) -> list[tuple[str, str]]:
    return [(a, b) for a, _, b in (pair.partition(" ") for pair in text.split(", "))]


def basics() -> list[dict]:
    """Facts, opposites, sums and copying."""
    draw = random.Random(0)
    items: list[dict] = []
    for country, capital in pairs(CAPITALS):
        items.append(_item("facts", f"What is the capital of {country}? Answer with one word.", capital, "regex"))
        items.append(_item("facts", f"Complete: The capital city of {country} is", capital, "regex"))
    for word, opposite in pairs(OPPOSITES):
        asks = f"What is the opposite of '{word}'? Answer with one word."
        items.append(_item("opposites", asks, rf"\b({opposite})\b", {"kind": "regex", "ignore_case": True}))
    for _ in range(60):
        a, b = draw.randint(1, 20), draw.randint(1, 20)
        items.append(_item("sums", f"What is {a} + {b}?", a + b, "numeric"))
    for _ in range(60):
        words = " ".join(draw.sample(WORDS, 3))
        asks = f"Repeat these words exactly and write nothing else: {words}"
        items.append(_item("copying", asks, words, {"kind": "exact", "ignore_case": True}))
    return [{"id": f"{item['group']}-{i}"} | item for i, item in enumerate(items)]


def _item(group: str, prompt: str, expected: object, grader: object) -> dict:
    return {"group": group, "prompt": prompt, "expected": expected, "grader": grader, "max_tokens": 24}


def tools() -> list[dict]:
    """One call, two calls at once, none, and JSON."""
    items: list[dict] = []
    for country, city in pairs(CAPITALS)[:20]:
        call = {"name": "get_weather", "arguments": {"city": {"$ignore_case": city}}}
        items.append({"group": "one", "prompt": f"What is the weather in {city}, {country}?", "expected": call})
    for a in range(10):
        calls = [{"name": "add", "arguments": {"a": a, "b": b}} for b in (2, 3)]
        items.append({"group": "parallel", "prompt": f"Compute {a} + 2 and {a} + 3.", "expected": calls})
        items.append({"group": "none", "prompt": f"Say the word {WORDS[a]}.", "expected": []})
    for item in items:
        item |= {"tools": TOOLS, "grader": {"kind": "tool-call", "arguments": "given"}, "max_tokens": 96}
    schema = {"type": "object", "required": ["name", "age"], "properties": {"age": {"type": "integer"}}}
    for name in ("Ann", "Bob", "Eve", "Tom", "Zoe"):
        asks = f'Write a JSON object with keys "name" ("{name}") and "age" (a number). Only the JSON.'
        items.append({"group": "json", "prompt": asks, "expected": schema, "grader": "json-schema", "max_tokens": 64})
    return items


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in {"basics": basics(), "tools": tools()}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(items)} items")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
