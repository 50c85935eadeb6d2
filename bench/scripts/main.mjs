export const handler = async (event) => event.body;

export const wait = async (event) => {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  return event.body;
};
