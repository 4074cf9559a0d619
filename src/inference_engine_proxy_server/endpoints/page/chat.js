// Requests to the fleet, as any client sends them.
import { clientHeaders } from "./access.js";
import { serverSentEvents } from "./sse.js";
import { t } from "./text.js";

const PATH = "v1/chat/completions";

// Sends a streamed chat. onText(text) gets the answer piece by piece.
// Returns { backend, id, first: seconds to the first token, seconds, tokens, isWhole }; throws an error for people.
export async function chat({ model, messages, maxTokens, signal }, onText = () => {}) {
  const began = performance.now();
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  if (model) body.model = model;
  if (maxTokens) body.max_tokens = maxTokens;
  const reply = await fetch(PATH, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...clientHeaders() },
    body: JSON.stringify(body),
    signal,
  });
  const result = { backend: reply.headers.get("x-backend"), id: reply.headers.get("x-request-id"), first: null, tokens: 0, isWhole: false };
  if (!reply.ok) throw Object.assign(new Error(await messageOf(reply)), { status: reply.status, result });
  for await (const event of serverSentEvents(reply.body)) {
    if (event.event === "comment") continue;
    if (event.data === "[DONE]") {
      result.isWhole = true;
      break;
    }
    follow(JSON.parse(event.data), result, onText, began);
  }
  result.seconds = (performance.now() - began) / 1000;
  if (!result.isWhole) throw Object.assign(new Error(t("chat.broken")), { result });
  return result;
}

function follow(chunk, result, onText, began) {
  if (chunk.error) throw Object.assign(new Error(chunk.error.message), { result });
  const delta = chunk.choices?.[0]?.delta ?? {};
  const text = delta.content ?? "", thought = delta.reasoning_content ?? delta.reasoning ?? "";
  if (text || thought) {
    result.first ??= (performance.now() - began) / 1000;
    result.tokens += 1;
    onText(text, thought);
  }
  if (chunk.usage) result.tokens = chunk.usage.completion_tokens;
}

async function messageOf(reply) {
  const body = await reply.json().catch(() => ({}));
  return body.error?.message ?? t("error.status", { status: reply.status });
}
