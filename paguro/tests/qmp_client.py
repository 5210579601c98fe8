"""Drives paguro with the package qemu.qmp: qmp_client.py SOCKET SNAPSHOT-FILE"""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient

# Only a test that fails gets there.
TIMEOUT_S = 240


async def until(listener, accept):
    """Names of the events up to the first that is accepted."""
    names = []
    async for event in listener:
        assert event["timestamp"]["seconds"] > 0, event
        names.append(event["event"])
        if accept(event):
            return names


async def refused(qmp, error_class, command, arguments=None):
    try:
        await qmp.execute(command, arguments)
    except ExecuteError as error:
        assert error.error_class == error_class, error
        return
    raise AssertionError(f"{command} was not refused")


async def main(socket, path):
    qmp = QMPClient("paguro")
    await qmp.connect(socket)
    commands = {entry["name"] for entry in await qmp.execute("query-commands")}
    assert {"migrate", "query-migrate", "quit"} <= commands, commands
    await refused(qmp, "CommandNotFound", "no-such-command")
    await refused(qmp, "GenericError", "stop", {"x": 1})
    assert await qmp.execute("query-migrate") == {}

    background = True
    try:
        await set_capabilities(qmp, {"background-snapshot": True})
    except ExecuteError as error:
        # No right to freeze memory here: a stopped snapshot is the same conversation.
        print("without background-snapshot:", error)
        background = False
    await set_capabilities(qmp, {"mapped-ram": True, "events": True})

    everything = EventListener()
    with qmp.listen(everything):
        await qmp.execute("migrate", {"uri": "file:" + path, "detach": True})
        # Of the guest and of the migration different threads tell, so either may come last.
        awaited = {"STOP", "RESUME", "over"} if background else {"STOP", "over"}

        def was_last(event):
            over = event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed")
            awaited.discard("over" if over else event["event"])
            return not awaited

        names = await until(everything, was_last)
    assert ("RESUME" in names) == background, names
    info = await qmp.execute("query-migrate")
    assert info["status"] == "completed", info
    assert info["ram"]["remaining"] == 0, info
    status = await qmp.execute("query-status")
    assert status["running"] == background, status
    if not background:
        assert status["status"] == "postmigrate", status
        await qmp.execute("cont")

    with qmp.listener(("STOP", "RESUME")) as pauses:
        await qmp.execute("stop")
        await until(pauses, lambda event: event["event"] == "STOP")
        await qmp.execute("cont")
        await until(pauses, lambda event: event["event"] == "RESUME")

    with qmp.listener("SHUTDOWN") as end:
        await qmp.execute("quit")
        await until(end, lambda event: event["data"]["reason"] == "host-qmp-quit")
    try:
        await qmp.disconnect()
    except EOFError:
        # It quit: it may have hung up before we did.
        pass
    print("events of the snapshot:", *names)


async def set_capabilities(qmp, states):
    entries = [{"capability": name, "state": state} for name, state in states.items()]
    await qmp.execute("migrate-set-capabilities", {"capabilities": entries})


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), TIMEOUT_S))
