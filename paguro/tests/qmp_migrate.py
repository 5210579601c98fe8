"""Moves a guest with the package qemu.qmp: qmp_migrate.py SOURCE-SOCKET DESTINATION-SOCKET

The destination was started with --incoming defer.
"""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient

# Only a test that fails gets there.
TIMEOUT_S = 240


async def connected(name, socket):
    qmp = QMPClient(name)
    await qmp.connect(socket)
    return qmp


async def statuses(listener):
    """Statuses of the migration, to its end."""
    seen = []
    async for event in listener:
        seen.append(event["data"]["status"])
        if seen[-1] in ("completed", "failed", "cancelled"):
            return seen


async def status(qmp):
    return (await qmp.execute("query-status"))["status"]


async def set_capabilities(qmp, names):
    entries = [{"capability": name, "state": True} for name in names]
    await qmp.execute("migrate-set-capabilities", {"capabilities": entries})


async def main(source_socket, destination_socket):
    source = await connected("source", source_socket)
    destination = await connected("destination", destination_socket)
    assert await status(source) == "running"
    assert await status(destination) == "inmigrate"
    try:
        await destination.execute("migrate", {"uri": "tcp:127.0.0.1:1"})
        raise AssertionError("a machine that waits was moved")
    except ExecuteError as error:
        assert error.error_class == "GenericError", error

    await set_capabilities(destination, ["events"])
    await destination.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
    info = await destination.execute("query-migrate")
    address = info["socket-address"][0]
    assert address["type"] == "inet", info

    names = ["events", "return-path", "auto-converge", "pause-before-switchover"]
    await set_capabilities(source, names)
    await source.execute(
        "migrate-set-parameters", {"downtime-limit": 200, "max-bandwidth": 0}
    )
    await source.execute(
        "calc-dirty-rate",
        {"calc-time": 100, "calc-time-unit": "millisecond", "mode": "dirty-bitmap"},
    )
    while (await source.execute("query-dirty-rate"))["status"] != "measured":
        await asyncio.sleep(0.01)

    out, into = EventListener("MIGRATION"), EventListener("MIGRATION")
    waiting = EventListener(
        "MIGRATION", lambda event: event["data"]["status"] == "pre-switchover"
    )
    with source.listen(out, waiting), destination.listen(into):
        channel = {
            "channel-type": "main",
            "addr": {
                "transport": "socket",
                "type": "inet",
                "host": address["host"],
                "port": address["port"],
            },
        }
        await source.execute("migrate", {"channels": [channel]})
        await waiting.get()
        assert await status(source) == "finish-migrate"
        await source.execute("migrate-continue", {"state": "pre-switchover"})
        seen_out = await statuses(out)
        seen_into = await statuses(into)
    print("source:", *seen_out)
    print("destination:", *seen_into)
    assert seen_out[-3:] == ["pre-switchover", "device", "completed"], seen_out
    assert seen_into[-1] == "completed", seen_into

    info = await source.execute("query-migrate")
    assert info["status"] == "completed" and info["ram"]["remaining"] == 0, info
    for field in ("total-time", "setup-time", "downtime"):
        assert info[field] >= 0, info
    assert await status(source) == "postmigrate"
    assert await status(destination) == "running"
    for qmp in (source, destination):
        await qmp.execute("quit")
        try:
            await qmp.disconnect()
        except EOFError:
            # It quit: it may have hung up before we did.
            pass


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), TIMEOUT_S))
