// The plain Node HTTP server that Hearth is compared with: the standard
// library's, with keep-alive, without logging.
import { createServer } from 'node:http';

const server = createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const body = chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
    response.writeHead(200, {
      'content-type': 'text/plain; charset=utf-8',
      'content-length': body.length,
    });
    response.end(body);
  });
});
server.keepAliveTimeout = 0;
server.listen({ host: '127.0.0.1', port: 0, backlog: 1024 }, () => {
  process.stdout.write(`READY 127.0.0.1:${server.address().port}\n`);
});
// Ends with the process that started this one.
process.stdin.on('end', () => process.exit(0)).resume();
