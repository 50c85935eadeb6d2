// A fixed number of steps of the interpreter, and nothing else.
export const handler = async () => {
  let x = 1;
  for (let i = 0; i < 1500000; i++) x = (Math.imul(x, 31) + i) >>> 0;
  return String(x);
};
