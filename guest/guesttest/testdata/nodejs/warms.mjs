const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export const warmup = async () => {
  console.log('warming');
  await sleep(1);
  console.log('warm');
};

export const handler = (event) => { console.log('handling', event.n); };

export const handler_async = async (event) => {
  await sleep(1);
  handler(event);
};

export const awaitable = (event, context, callback) => {
  handler(event);
  callback(null, 'done');
};

export async function* stream() {
  console.log('begun');
  yield 'nobody reads this';
  console.log('ended');
}

export const patient = (event, context) => new Promise((_, reject) => {
  console.log('waiting');
  context.signal.addEventListener('abort', () => reject(context.signal.reason));
});
