// Sends back what it gets: npx wscat -c ws://127.0.0.1:8080/fn/echo-node/
export const handler = async (event, context) => {
  const ws = context.websocket;
  if (ws === null) return { statusCode: 426, headers: { upgrade: 'websocket' }, body: 'This is for WebSockets.\n' };
  await ws.send(`hello, ${event.requestContext.http.sourceIp}`);
  for await (const message of ws) await ws.send(message); // a string, or a Buffer
  console.log('closed with', ws.closeCode, ws.closeReason);
};
handler.websocket = true;
