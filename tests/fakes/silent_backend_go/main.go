// A gRPC server with default options that answers any call after some seconds of silence, with raw bytes.
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte(nil), b...); return nil }

func main() {
	silence, err := time.ParseDuration(os.Args[1])
	if err != nil {
		panic(err)
	}
	encoding.RegisterCodec(raw{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	answer := func(_ any, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		time.Sleep(silence)
		// Field 1, as Reply.message has it.
		reply := append([]byte{10, 7}, "at last"...)
		return stream.SendMsg(&reply)
	}
	fmt.Println(listener.Addr())
	panic(grpc.NewServer(grpc.UnknownServiceHandler(answer)).Serve(listener))
}
