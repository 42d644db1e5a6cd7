// google-auth-library for Node: one read per line on standard input, one line of JSON on standard output.
import { createInterface } from "node:readline";

import { GoogleAuth } from "google-auth-library";

const auth = new GoogleAuth({ scopes: ["https://www.googleapis.com/auth/devstorage.read_only"] });
let client;

console.log("here");
for await (const _ of createInterface({ input: process.stdin })) {
  try {
    client ??= await auth.getClient();
    const url = `${process.env.MATRIX_STORE}/storage/v1/b/bucket/o/hello.txt?alt=media`;
    const answer = await client.request({ url, responseType: "text" });
    console.log(JSON.stringify({ ok: answer.data === "hello matrix\n" }));
  } catch (error) {
    console.log(JSON.stringify({ ok: false, error: `${error.name}: ${error.message}`.slice(0, 300) }));
  }
}
