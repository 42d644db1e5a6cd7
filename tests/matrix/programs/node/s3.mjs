// AWS SDK for JavaScript v3: one read per line on standard input, one line of JSON on standard output.
import { createInterface } from "node:readline";

import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";

const client = new S3Client({ endpoint: process.env.MATRIX_STORE, region: "us-east-1", forcePathStyle: true });

console.log("here");
for await (const _ of createInterface({ input: process.stdin })) {
  try {
    const answer = await client.send(new GetObjectCommand({ Bucket: "bucket", Key: "hello.txt" }));
    console.log(JSON.stringify({ ok: (await answer.Body.transformToString()) === "hello matrix\n" }));
  } catch (error) {
    console.log(JSON.stringify({ ok: false, error: `${error.name}: ${error.message}`.slice(0, 300) }));
  }
}
