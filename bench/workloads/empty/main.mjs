export const handler = async () => "ok";

// Answers at the time, in seconds of the epoch, that the body names.
export const wait = async (event) => {
  await new Promise((done) => setTimeout(done, Math.max(0, Number(event.body) * 1000 - Date.now())));
  return "ok";
};
