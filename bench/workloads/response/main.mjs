const body = "0123456789".repeat(100_000);

// A response of one megabyte.
export const handler = async () => ({ statusCode: 200, headers: { "content-type": "text/plain" }, body });
