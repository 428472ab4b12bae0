package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"example.com/corral/backend"
	_ "example.com/corral/gallery/v1"
	_ "example.com/corral/loader/v1"
	_ "example.com/corral/metrics/v1"
	_ "example.com/corral/monitor/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func main() {
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "corral-model", os.Args[2])
	stream, err := backend.NewBackendClient(conn).PredictStream(ctx, &backend.PredictOptions{Prompt: os.Args[3], Tokens: 3})
	if err != nil {
		log.Fatal(err)
	}
	for {
		reply, err := stream.Recv()
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(string(reply.Message))
	}
}
