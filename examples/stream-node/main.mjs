// Streams: each item is sent as soon as it is yielded (curl -N shows it).

import { setTimeout as sleep } from "node:timers/promises";

export async function* handler(event, context) {
  for (let i = 1; i <= 5; i++) {
    yield `line ${i} of 5\n`;
    await sleep(200, undefined, { signal: context.signal });
  }
}
