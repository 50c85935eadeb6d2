// Turns Markdown into HTML: POST it, or add ?text= to the URL.

import { marked } from "marked"; // installed by the deploy; see package.json

export const handler = async (event) => {
  let text = event.queryStringParameters?.text ?? "# Hello\n\nPOST some *Markdown*.";
  if (event.body) text = event.isBase64Encoded ? Buffer.from(event.body, "base64").toString() : event.body;
  return { statusCode: 200, headers: { "Content-Type": "text/html; charset=utf-8" }, body: marked.parse(text) };
};
