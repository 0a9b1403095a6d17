"""No secret and, unless asked for, no text in anything that is written or said."""

from __future__ import annotations

import asyncio
import json
import socket
import stat

import aiohttp
import pytest

from fwopt.errors import InputError
from fwopt.record.key import PrefixKey

CHAT = "/v1/chat/completions"
KEYS = (
    "SECRETbearer",
    "SECRETxapikey",
    "SECRETcookie",
    "SECRETquery",
    "SECRETuser",
    "SECRETmeta",
    "SECRETmcp",
    "SECRETraw",
)
WORDS = ("SECRETprompt", "SECRETtool", "SECRETsystem", "SECRETcompletion", "SECRETinput", "w3 w4")


def planted() -> list[tuple[str, dict]]:
    tools = [
        {"type": "function", "function": {"name": "look", "description": "SECRETtool"}},
        {
            "type": "mcp",
            "server_url": "http://x",
            "authorization": "SECRETmcp",
            "headers": {"Authorization": "SECRETmcp"},
        },
    ]
    common = {"model": "m", "user": "SECRETuser", "metadata": {"k": "SECRETmeta"}, "tools": tools, "max_tokens": 8}
    messages = [{"role": "system", "content": "SECRETsystem"}, {"role": "user", "content": "SECRETprompt"}]
    return [
        (CHAT, common | {"messages": messages}),
        (CHAT, common | {"messages": messages, "stream": True}),
        (CHAT, common | {"messages": [{"role": "user", "content": [{"type": "text", "text": "SECRETprompt"}, 5]}]}),
        (CHAT, common | {"messages": messages, "stub": {"status": 401}}),
        (
            CHAT,
            common | {"messages": [{"role": "SECRETprompt", "content": {"a": "SECRETprompt"}, "tool_calls": ["x"]}]},
        ),
        (CHAT, common | {"messages": messages, "stream": True, "stub": {"break_after": 3}}),
        ("/v1/completions", common | {"prompt": "SECRETcompletion"}),
        ("/v1/responses", common | {"input": "SECRETinput", "instructions": "SECRETsystem"}),
    ]


def traffic(url: str) -> None:
    headers = {"Authorization": "Bearer SECRETbearer", "X-API-Key": "SECRETxapikey", "Cookie": "c=SECRETcookie"}

    async def run() -> None:
        async with aiohttp.ClientSession(headers=headers) as session:
            for path, body in planted():
                try:
                    async with session.post(url + path + "?api_key=SECRETquery", json=body) as reply:
                        await reply.read()
                except aiohttp.ClientPayloadError:
                    assert "break_after" in str(body)
            async with session.post(url + CHAT, data=b'{"SECRETprompt": ') as reply:
                assert reply.status == 400

    asyncio.run(run())
    host, port = url.removeprefix("http://").split(":")
    for bad in (b"GET / HTTP/1.1\r\nAuthorization SECRETraw\r\n\r\n", b"SECRETraw\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(bad)
            while connection.recv(4096):
                pass


@pytest.mark.parametrize("options", [(), ("--tokenizer",), ("--with-text",)], ids=["plain", "tokenizer", "with text"])
def test_planted_secrets_are_nowhere(stub, start, tmp_path, toy_tokenizer, options) -> None:
    if options == ("--tokenizer",):
        options = ("--tokenizer", str(toy_tokenizer))
    recording = start(stub, "--rotate", "1KB", *options)
    traffic(recording.url)
    assert recording.stop() == 0
    files = {path.name: path.read_text() for path in tmp_path.rglob("*.jsonl*")} | {"log": recording.log}
    everything = "\n".join(files.values())
    assert everything.count('"arrival_s"') >= 8
    for secret in KEYS:
        assert secret not in everything
    for word in WORDS:
        assert (word in everything) == ("--with-text" in options), word
    assert not any(word in recording.log for word in WORDS)
    for path in tmp_path.glob("workload*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_hashes_cannot_be_guessed_without_the_key_and_agree_with_it(stub, start, tmp_path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a well known prompt " * 20}]}

    def blocks(*options: str) -> list[int]:
        recording = start(stub, *options, out=tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl")

        async def run() -> None:
            async with aiohttp.ClientSession() as session, session.post(recording.url + CHAT, json=body) as reply:
                await reply.read()

        asyncio.run(run())
        recording.stop()
        return recording.rows()[0]["prefix_blocks"]

    key = ("--key-file", str(tmp_path / "key"))
    first, second = blocks(*key), blocks(*key)
    assert first == second
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    without, again = blocks(), blocks()
    assert len(without) == len(first)
    assert not set(first) & set(without)
    assert not set(again) & set(without)


def test_key_files_that_are_no_secret_are_refused(tmp_path) -> None:
    file = tmp_path / "key"
    PrefixKey.from_file(file)
    file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        PrefixKey.from_file(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        PrefixKey.from_file(file)


@pytest.fixture
def toy_tokenizer(tmp_path_factory):
    """A tokenizer of bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder
