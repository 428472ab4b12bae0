// Load generator: calls any method of any gRPC service with the raw bytes of a file, from one thread.
//
//   load --target ADDR --method /svc/M --request FILE [--mode unary|stream] [--concurrency N]
//        [--seconds S] [--warmup S] [--connections N] [--metadata KEY=VALUE]... [--paced RATE]
//        [--timeout S] [--drain S]
//
// Prints one JSON object. `ops` are the calls, or the messages of streams, that ended within
// --seconds; `total` are all, with those of --warmup and of the end: what CPU time is divided by.
// A stream that ends is started again. At the end, open calls have --drain seconds to finish, then they
// are cancelled, which is not an error. With --paced the messages carry the time they were sent at
// (backend.cc), and the latencies are the messages' delays; without it they are those of unary calls. When
// each stream has had its first message, `open` goes to stderr.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Options {
  std::string target, method, request, mode = "unary";
  std::vector<std::pair<std::string, std::string>> metadata;
  int concurrency = 1, connections = 1;
  double seconds = 1, warmup = 0.2, paced = 0, timeout = 60, drain = 20;
};

int64_t Nanoseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int64_t Now() { return Nanoseconds(CLOCK_MONOTONIC); }

std::chrono::system_clock::time_point In(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::microseconds(int64_t(seconds * 1e6));
}

// The stamp is the first eight bytes of the first field of the message: tag, length, bytes.
int64_t SentAt(const grpc::ByteBuffer& message) {
  uint8_t head[24];
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return 0;
  size_t n = 0;
  for (const auto& slice : slices) {
    size_t more = std::min(slice.size(), sizeof head - n);
    memcpy(head + n, slice.begin(), more);
    n += more;
  }
  if (n == 0 || head[0] != 0x0a) return 0;
  size_t at = 1;
  while (at < n && head[at++] & 0x80) {
  }
  int64_t stamp = 0;
  if (at + sizeof stamp > n) return 0;
  memcpy(&stamp, head + at, sizeof stamp);
  return stamp;
}

class Load;

class Call {
 public:
  Call(Load* load, grpc::GenericStub* stub) : load_(load), stub_(stub) {}
  void Start();
  void Next(bool ok);
  void Cancel() {
    if (context_) context_->TryCancel();
  }

 private:
  enum State { kUnary, kStart, kWrite, kRead, kFinish };
  void Finish();
  void End();

  Load* load_;
  grpc::GenericStub* stub_;
  State state_ = kUnary;
  bool opened_ = false;
  int64_t began_ = 0;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> unary_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer response_;
  grpc::Status status_;
};

class Load {
 public:
  explicit Load(Options given) : options(std::move(given)) {
    std::ifstream file(options.request, std::ios::binary);
    if (!file) Fail("cannot read " + options.request);
    std::string bytes((std::istreambuf_iterator<char>(file)), {});
    grpc::Slice slice(bytes);
    request = grpc::ByteBuffer(&slice, 1);
  }

  [[noreturn]] static void Fail(const std::string& why) {
    fprintf(stderr, "load: %s\n", why.c_str());
    exit(1);
  }

  void Count(int64_t now, int64_t latency, const grpc::ByteBuffer& response) {
    ++total;
    bytes_ += response.Length();
    if (now < begin_ || now >= end_) return;
    ++ops_;
    if (latency >= 0) latencies_.push_back(latency);
  }

  void Opened() {
    if (++opened_ == options.concurrency) fprintf(stderr, "open\n");
  }

  void Failed(const grpc::Status& status) {
    if (cancelled_) return;
    if (errors_++ == 0) error_ = std::to_string(status.error_code()) + ": " + status.error_message();
  }

  // A method that fails at once would otherwise be called without end.
  bool Goes() const { return Now() < end_ && errors_ < 1000; }

  int Run() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
    for (int i = 0; i < options.connections; ++i) {
      auto channel = grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments);
      if (!channel->WaitForConnected(In(10))) Fail("cannot connect to " + options.target);
      stubs.push_back(std::make_unique<grpc::GenericStub>(channel));
    }
    int64_t cpu = Nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    begin_ = Now() + int64_t(options.warmup * 1e9);
    end_ = begin_ + int64_t(options.seconds * 1e9);
    std::vector<std::unique_ptr<Call>> calls;
    for (int i = 0; i < options.concurrency; ++i) {
      calls.push_back(std::make_unique<Call>(this, stubs[i % stubs.size()].get()));
      ++running;
      calls.back()->Start();
    }
    auto limit = In(options.warmup + options.seconds + options.drain);
    while (running > 0) {
      void* tag;
      bool ok;
      auto got = queue.AsyncNext(&tag, &ok, cancelled_ ? In(10) : limit);
      if (got == grpc::CompletionQueue::GOT_EVENT) {
        static_cast<Call*>(tag)->Next(ok);
        if (cancelled_ || options.drain > 0 || Now() < end_) continue;
      }
      if (got == grpc::CompletionQueue::TIMEOUT && cancelled_) break;
      cancelled_ = true;
      for (auto& call : calls) call->Cancel();
    }
    Print((Nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1e3);
    fflush(stdout);
    _Exit(0);  // the queue may hold calls that never ended
  }

  Options options;
  grpc::ByteBuffer request;
  grpc::CompletionQueue queue;
  int64_t total = 0;
  int running = 0;

 private:
  double Percentile(double share) {
    if (latencies_.empty()) return 0;
    auto at = latencies_.begin() + std::min(latencies_.size() - 1, size_t(latencies_.size() * share));
    std::nth_element(latencies_.begin(), at, latencies_.end());
    return *at / 1e3;
  }

  void Print(double cpu) {
    std::string error;
    for (char c : error_) {
      if (c == '"' || c == '\\') error += '\\';
      error += uint8_t(c) < ' ' ? ' ' : c;
    }
    printf(
        "{\"ops\": %ld, \"total\": %ld, \"errors\": %ld, \"error\": \"%s\", \"opened\": %d, "
        "\"seconds\": %.3f, \"rps\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"cpu_us\": %.2f, \"bytes\": "
        "%ld}\n",
        ops_, total, errors_, error.c_str(), opened_, options.seconds, ops_ / options.seconds,
        Percentile(0.5), Percentile(0.99), total ? cpu / total : 0, bytes_);
  }

  int64_t begin_ = 0, end_ = 0, ops_ = 0, errors_ = 0, bytes_ = 0;
  int opened_ = 0;
  bool cancelled_ = false;
  std::string error_;
  std::vector<int64_t> latencies_;
};

void Call::Start() {
  unary_.reset();  // what belongs to the last call lives in its context
  stream_.reset();
  context_ = std::make_unique<grpc::ClientContext>();
  context_->set_deadline(In(load_->options.timeout));
  for (const auto& [key, value] : load_->options.metadata) context_->AddMetadata(key, value);
  began_ = Now();
  if (load_->options.mode == "unary") {
    state_ = kUnary;
    unary_ = stub_->PrepareUnaryCall(context_.get(), load_->options.method, load_->request, &load_->queue);
    unary_->StartCall();
    unary_->Finish(&response_, &status_, this);
  } else {
    state_ = kStart;
    stream_ = stub_->PrepareCall(context_.get(), load_->options.method, &load_->queue);
    stream_->StartCall(this);
  }
}

void Call::Next(bool ok) {
  switch (state_) {
    case kUnary:
      return End();
    case kStart:
      if (!ok) return Finish();
      state_ = kWrite;
      return stream_->WriteLast(load_->request, grpc::WriteOptions(), this);
    case kWrite:
      if (!ok) return Finish();
      state_ = kRead;
      return stream_->Read(&response_, this);
    case kRead: {
      if (!ok) return Finish();
      int64_t now = Now(), sent = load_->options.paced > 0 ? SentAt(response_) : 0;
      load_->Count(now, sent ? now - sent : -1, response_);
      if (!opened_) {
        opened_ = true;
        load_->Opened();
      }
      return stream_->Read(&response_, this);
    }
    case kFinish:
      return End();
  }
}

void Call::Finish() {
  state_ = kFinish;
  stream_->Finish(&status_, this);
}

void Call::End() {
  if (!status_.ok()) {
    load_->Failed(status_);
  } else if (state_ == kUnary) {
    int64_t now = Now();
    load_->Count(now, now - began_, response_);
  }
  response_.Clear();
  if (load_->Goes()) return Start();
  --load_->running;
}

Options Parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    std::string name = words[i];
    if (i + 1 == count) Load::Fail(name + " needs a value");
    std::string value = words[i + 1];
    if (name == "--target")
      options.target = value;
    else if (name == "--method")
      options.method = value;
    else if (name == "--request")
      options.request = value;
    else if (name == "--mode")
      options.mode = value;
    else if (name == "--concurrency")
      options.concurrency = std::stoi(value);
    else if (name == "--connections")
      options.connections = std::stoi(value);
    else if (name == "--seconds")
      options.seconds = std::stod(value);
    else if (name == "--warmup")
      options.warmup = std::stod(value);
    else if (name == "--paced")
      options.paced = std::stod(value);
    else if (name == "--timeout")
      options.timeout = std::stod(value);
    else if (name == "--drain")
      options.drain = std::stod(value);
    else if (name == "--metadata") {
      auto at = value.find('=');
      if (at == std::string::npos) Load::Fail("--metadata wants KEY=VALUE");
      options.metadata.emplace_back(value.substr(0, at), value.substr(at + 1));
    } else
      Load::Fail("no such option: " + name);
  }
  if (options.target.empty() || options.method.empty() || options.request.empty())
    Load::Fail("--target, --method and --request are needed");
  return options;
}

}  // namespace

int main(int count, char** words) { return Load(Parse(count, words)).Run(); }
