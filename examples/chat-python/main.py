"""A chat: open http://127.0.0.1:8080/fn/chat-python/ twice and talk to yourself."""

PAGE = """<!doctype html>
<title>Chat</title>
<form><input autofocus placeholder="Say something"></form><pre></pre>
<script>
  const log = (text) => document.querySelector("pre").append(text + "\\n");
  let ws;
  function connect() {
    ws = new WebSocket(location.href.replace(/^http/, "ws"));
    ws.onmessage = (e) => log(e.data);
    ws.onclose = () => setTimeout(connect, 1000); // a restart, or an hour of silence
  }
  connect();
  document.querySelector("form").onsubmit = (e) => {
    e.preventDefault();
    ws.send(document.querySelector("input").value);
    e.target.reset();
  };
</script>
"""

connected = set()


async def handler(event, context):
    ws = context.websocket
    if ws is None:  # a request like any other
        return {"statusCode": 200, "headers": {"content-type": "text/html; charset=utf-8"}, "body": PAGE}
    name = f"guest {len(connected) + 1}"
    ws.accept()
    connected.add(ws)
    try:
        await say(f"{name} is here, and {len(connected) - 1} others")
        async for message in ws:
            await say(f"{name}: {message}")
    finally:
        connected.discard(ws)
        await say(f"{name} has left")  # also if the connection just broke


async def say(text):
    for ws in list(connected):
        try:
            await ws.send(text)
        except ws.Closed:
            pass  # it is about to leave


handler.websocket = True
