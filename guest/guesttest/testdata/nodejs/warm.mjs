// A function with a warmup; warms.mjs and warm_fails.cjs have others.

const done = [];

export const warmup = () => {
  console.log('warming');
  done.push('warmup');
  return 1n;
};

export const handler = (event, context) => {
  console.log('handling', event.n, context.awsRequestId, context.getRemainingTimeInMillis() > 0 ? 'True' : 'False');
  done.push('handler');
  return event.n === 0 ? { done } : 1n;
};

export function* stream() {
  console.log('begun');
  yield 'nobody reads this';
  console.log('ended');
}

export const read = async (event, context) => {
  let body = '';
  for await (const chunk of context.body) body += chunk;
  console.log('read', event.n, body || 'nothing');
};
read.requestStream = true;
