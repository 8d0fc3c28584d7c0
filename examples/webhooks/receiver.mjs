// Receives facts from a webhook: WEBHOOK_SECRET=whsec_… node receiver.mjs 8080
// npm install standardwebhooks
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const seen = new Set(); // of a real receiver: a table with a unique column

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  let event;
  try {
    // The body as it came: parsed and written again it would be another one.
    event = webhook.verify(Buffer.concat(chunks).toString(), request.headers);
  } catch (error) {
    response.writeHead(401).end(error.message);
    return;
  }
  if (!seen.has(event.id)) console.log(event.type, event.key);
  seen.add(event.id);
  response.writeHead(204).end();
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("listening", `127.0.0.1:${server.address().port}`));
