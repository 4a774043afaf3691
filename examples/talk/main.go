// Talk is two services in one program: "talk serve" answers over HTTP with the task that
// it runs in, and "talk call URL" asks for that every second, and prints the answer.
//
//	go build -o /usr/local/bin/talk ./examples/talk
//	muster network create front
//	muster service create --file examples/talk/greeter.yaml
//	muster service create --file examples/talk/caller.yaml
//	muster service logs -f caller
//	curl localhost:8080
//
// The caller finds the greeter by its name, and each request reaches another task.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// patience bounds one request, and the requests that are under way at the end.
const patience = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "talk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, ":8080")
	case len(args) == 2 && args[0] == "call":
		call(ctx, args[1])
		return nil
	}
	return errors.New("usage: talk serve, or talk call URL")
}

// serve answers until ctx ends, and then ends what it has begun.
func serve(ctx context.Context, address string) error {
	server := &http.Server{Addr: address, ReadHeaderTimeout: patience, Handler: http.HandlerFunc(greet)}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return server.Shutdown(within)
}

func greet(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "hello %s, this is %s on %s\n", r.RemoteAddr, os.Getenv("MUSTER_TASK_NAME"), os.Getenv("MUSTER_NODE_ID"))
}

// call asks once a second until ctx ends.
func call(ctx context.Context, url string) {
	// A new connection for each request reaches another task each time.
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		if answer, err := ask(ctx, client, url); err != nil {
			fmt.Println("no answer:", err)
		} else {
			fmt.Println(answer)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return strings.TrimSpace(string(body)), err
}
