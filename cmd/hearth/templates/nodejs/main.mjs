// Answer a call: `event` is an object, and so may be what you return.
export const handler = async (event, context) => {
  // An HTTP request carries its query string and its body; `hearth invoke`
  // passes its data as the event itself.
  const name = event?.name ?? event?.queryStringParameters?.name ?? "world";
  console.log("greeting", name); // hearth logs shows this
  return { message: `Hello, ${name}!` };
};
