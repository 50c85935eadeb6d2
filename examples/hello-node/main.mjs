// Greets whoever the path names: GET /fn/hello-node/hello/you

const greeting = process.env.GREETING ?? "Hi";

export const handler = async (event, context) => {
  // An HTTP request is an object with rawPath, headers, queryStringParameters,
  // body and more; `hearth invoke` passes its own JSON instead.
  const last = (event?.rawPath ?? "").split("/").filter(Boolean).pop();
  const name = event?.name ?? (last && last !== "hello" ? last : "world");

  console.log("greeting", name); // shown by: hearth logs hello-node

  return {
    statusCode: 200,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      message: `${greeting}, ${name}!`,
      from: "JavaScript",
      query: event?.queryStringParameters ?? {},
      request_id: context.awsRequestId,
      remaining_ms: context.getRemainingTimeInMillis(),
    }),
  };
};
