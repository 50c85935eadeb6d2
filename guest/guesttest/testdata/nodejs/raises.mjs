function load() {
  const e = new Error('no such setting');
  e.name = 'KeyError';
  throw e;
}
load();
export const handler = () => 1;
