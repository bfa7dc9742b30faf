// The Vercel AI SDK: a tool of a recursive zod type, steps, streams and objects, by chat completions and by responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert";
import { z } from "zod";

const { BASE_URL, MODEL } = process.env;
const Node = z.object({
  name: z.string(),
  get kids() {
    return z.array(Node).optional();
  },
});
const compatible = createOpenAICompatible({ name: "puna", baseURL: BASE_URL, apiKey: "none" });
const openai = createOpenAI({ baseURL: BASE_URL, apiKey: "none" });
const stop = (isStepCount ?? stepCountIs)(3);
for (const model of [compatible(MODEL), openai.chat(MODEL), openai.responses(MODEL)]) {
  const asked = [];
  const tools = { plant: tool({ description: "Plant.", inputSchema: Node, execute: async (given) => (asked.push(given), "ok") }) };
  const whole = await generateText({ model, tools, stopWhen: stop, prompt: "A tree, please.", maxRetries: 0 });
  assert.equal(whole.text, "Done.");
  assert.deepEqual(asked, [{ name: "echo hello" }]);
  const streamed = streamText({ model, tools, stopWhen: stop, prompt: "A tree, please.", maxRetries: 0 });
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  assert.equal(text, "Done.");
}
console.log("a tool of a recursive type in steps, streams, by chat and by responses");
