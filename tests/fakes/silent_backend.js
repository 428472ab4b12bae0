// A grpc-js server with default options that answers any call after some milliseconds of silence, with raw bytes.
const grpc = require('@grpc/grpc-js');

const silence = Number(process.argv[2]);
const raw = bytes => bytes;
const reply = Buffer.concat([Buffer.from([10, 7]), Buffer.from('at last')]); // field 1, as Reply.message
const predict = {
  path: '/backend.Backend/Predict', requestStream: false, responseStream: false,
  requestSerialize: raw, requestDeserialize: raw, responseSerialize: raw, responseDeserialize: raw,
};
const server = new grpc.Server();
server.addService({ predict }, { predict: (call, done) => setTimeout(() => done(null, reply), silence) });
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`127.0.0.1:${port}`);
});
