// A backend without a model, for measuring what is in front of it: `backend --addr ADDRESS`.
//
// Predict answers with the prompt, or with Metadata["size"] bytes. PredictStream answers with Tokens
// messages (0: until cancelled) of Metadata["size"] bytes (16), as fast as they are taken or
// Metadata["rate"] a second; the first at once, the second after any part of the pause. A streamed message
// begins with the time it was sent at: CLOCK_MONOTONIC in nanoseconds, 8 bytes, little-endian.
#include <grpcpp/alarm.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <thread>

#include "corral/backend/backend.pb.h"

namespace {

constexpr int kMaxMessage = 50 << 20;
std::string token;  // "Bearer ..." that each call must carry; empty: none

int64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

grpc::ByteBuffer Bytes(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

class Server {
 public:
  void Run(const std::string& address);
  grpc::AsyncGenericService service;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
};

// One call. Its tags are itself, and itself + 1 for the event that it is over.
class Call {
 public:
  explicit Call(Server* server) : server_(server), stream_(&context_) {
    context_.AsyncNotifyWhenDone(reinterpret_cast<char*>(this) + 1);
    server->service.RequestCall(&context_, &stream_, server->queue.get(), server->queue.get(), this);
  }

  void Done() {
    done_ = true;
    if (state_ == kWait) alarm_.Cancel();
    if (state_ == kEnd) delete this;
  }

  void Next(bool ok) {
    switch (state_) {
      case kRequest:
        if (!ok) return;
        new Call(server_);
        if (!Allowed()) return Finish({grpc::StatusCode::UNAUTHENTICATED, "wrong token"});
        state_ = kRead;
        return stream_.Read(&request_, this);
      case kRead:
        return ok ? Answer() : Finish({grpc::StatusCode::INVALID_ARGUMENT, "no request"});
      case kWrite:
        if (!ok) return Finish({grpc::StatusCode::CANCELLED, "cancelled"});
        if (--left_ == 0) return Finish(grpc::Status::OK);
        if (pause_ == 0) return Send();
        state_ = kWait;
        // Streams that start together must not send together.
        due_ += sent_++ ? pause_ : int64_t(pause_ * (rand() / double(RAND_MAX)));
        return alarm_.Set(server_->queue.get(), Due(), this);
      case kWait:
        return done_ ? Finish({grpc::StatusCode::CANCELLED, "cancelled"}) : Send();
      case kFinish:
        state_ = kEnd;
        if (done_) delete this;
        return;
      case kEnd:
        return;
    }
  }

 private:
  enum State { kRequest, kRead, kWrite, kWait, kFinish, kEnd };

  bool Allowed() const {
    if (token.empty()) return true;
    auto found = context_.client_metadata().find("authorization");
    return found != context_.client_metadata().end() && found->second == token;
  }

  gpr_timespec Due() const {
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(due_ - Now(), GPR_TIMESPAN));
  }

  void Answer() {
    using backend::PredictOptions;
    std::string name = context_.method().substr(context_.method().rfind('/') + 1);
    if (name == "Predict" || name == "PredictStream") {
      PredictOptions options;
      std::vector<grpc::Slice> slices;
      std::string bytes;
      request_.Dump(&slices);
      for (const auto& slice : slices)
        bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
      if (!options.ParseFromString(bytes))
        return Finish({grpc::StatusCode::INVALID_ARGUMENT, "no PredictOptions"});
      auto number = [&](const char* key, double otherwise) {
        auto found = options.metadata().find(key);
        return found == options.metadata().end() ? otherwise : atof(found->second.c_str());
      };
      if (name == "Predict") {
        double size = number("size", -1);
        if (size < 0)
          reply_.mutable_message()->swap(*options.mutable_prompt());
        else
          reply_.set_message(std::string(size_t(size), 'x'));
        return Last(reply_);
      }
      left_ = options.tokens() ? options.tokens() : -1;
      if (double rate = number("rate", 0); rate > 0) pause_ = int64_t(1e9 / rate);
      reply_.set_message(std::string(std::max<size_t>(8, size_t(number("size", 16))), 'x'));
      due_ = Now();
      return Send();
    }
    if (name == "Health") {
      reply_.set_message("OK");
      return Last(reply_);
    }
    if (name == "LoadModel" || name == "Free") {
      backend::Result result;
      result.set_success(true);
      return Last(result);
    }
    if (name == "Status") {
      backend::StatusResponse status;
      status.set_state(backend::StatusResponse::READY);
      return Last(status);
    }
    Finish({grpc::StatusCode::UNIMPLEMENTED, name + " is not served here"});
  }

  void Send() {
    int64_t now = Now();
    memcpy(&(*reply_.mutable_message())[0], &now, sizeof now);
    state_ = kWrite;
    stream_.Write(Bytes(reply_), this);
  }

  void Last(const google::protobuf::MessageLite& message) {
    state_ = kFinish;
    stream_.WriteAndFinish(Bytes(message), grpc::WriteOptions(), grpc::Status::OK, this);
  }

  void Finish(const grpc::Status& status) {
    state_ = kFinish;
    stream_.Finish(status, this);
  }

  Server* server_;
  State state_ = kRequest;
  bool done_ = false;
  int64_t left_ = -1, sent_ = 0, pause_ = 0, due_ = 0;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  grpc::ByteBuffer request_;
  backend::Reply reply_;
  grpc::Alarm alarm_;
};

void Server::Run(const std::string& address) {
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  builder.SetMaxSendMessageSize(kMaxMessage);
  builder.RegisterAsyncGenericService(&service);
  queue = builder.AddCompletionQueue();
  auto server = builder.BuildAndStart();
  if (!server || port == 0) {
    fprintf(stderr, "cannot listen at %s\n", address.c_str());
    _exit(1);
  }
  new Call(this);
  bool socket = address.rfind("unix:", 0) == 0;
  std::string bound = socket ? address : address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  printf("ready bench %s\n", bound.c_str());
  fflush(stdout);
  void* tag;
  bool ok;
  while (queue->Next(&tag, &ok)) {
    auto which = reinterpret_cast<uintptr_t>(tag);
    if (which & 1)
      reinterpret_cast<Call*>(which - 1)->Done();
    else
      static_cast<Call*>(tag)->Next(ok);
  }
}

}  // namespace

int main(int count, char** words) {
  std::string address;
  for (int i = 1; i + 1 < count; ++i)
    if (std::string(words[i]) == "--addr") address = words[i + 1];
  if (address.empty()) {
    fprintf(stderr, "backend: --addr HOST:PORT or unix:/path is needed\n");
    return 2;
  }
  if (const char* given = getenv("LOCALAI_GRPC_AUTH_TOKEN"); given && *given)
    token = std::string("Bearer ") + given;
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  std::thread([=] {
    int signal;
    sigwait(&ends, &signal);
    if (address.rfind("unix:", 0) == 0) unlink(address.substr(5).c_str());
    _exit(0);
  }).detach();
  Server().Run(address);
}
