// Calls Predict with @grpc/grpc-js, as `callers.Calling` describes, until its stdin ends.
'use strict';
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const how = JSON.parse(process.argv[2]);
const contract = grpc.loadPackageDefinition(loader.loadSync(how.proto, { keepCase: true }));
const client = new contract.backend.Backend(how.target, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
for (const [key, value] of how.metadata) metadata.add(key, value);
const request = { Prompt: 'x'.repeat(how.size) };
const calls = [];
const failures = [];
let ended = false;
const wake = new Set();

// The same clock as Python's time.monotonic().
const now = () => Number(process.hrtime.bigint()) / 1e9;

const pause = (seconds) =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      wake.delete(done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    wake.add(done);
  });

const call = (deadline) =>
  new Promise((resolve, reject) =>
    client.Predict(request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

async function work() {
  while (!ended) {
    const began = now();
    try {
      const answer = await call(Date.now() + how.deadline * 1000);
      if (answer.message.length !== how.size) throw Object.assign(new Error('the answer is another one'), { code: 'ANSWER' });
    } catch (error) {
      failures.push({ at: began, code: grpc.status[error.code] || String(error.code), text: String(error.details || error) });
    }
    calls.push([began, now()]);
    await pause(Math.max(0, 1 / how.rate - (now() - began)));
  }
}

async function main() {
  const workers = Array.from({ length: how.workers }, work);
  console.log('ready');
  await new Promise((resolve) => process.stdin.on('end', resolve).resume());
  ended = true;
  for (const each of [...wake]) each();
  await Promise.all(workers);
  client.close();
  await new Promise((resolve) => process.stdout.write(JSON.stringify({ calls, failures }) + '\n', resolve));
}

main();
