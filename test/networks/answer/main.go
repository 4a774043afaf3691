// Answer is what the tasks of tests of networks run: it answers over HTTP and UDP with
// the task that it runs in, and ends in order when it is asked to.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
)

// endTimeout bounds the answers that are under way when the program is to end.
const endTimeout = 5 * time.Second

// Said is the answer. A container does not know its task's id, and says its address.
type Said struct {
	Task   string `json:"task"`
	Client string `json:"client"`
}

func main() {
	port := flag.Int("port", 8080, "TCP and UDP port")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, fmt.Sprintf(":%d", *port)); err != nil {
		fmt.Fprintln(os.Stderr, "answer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address string) error {
	task := os.Getenv("MUSTER_TASK_ID")
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer func() { _ = packets.Close() }()
	go echo(packets, task)
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: endTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			client, _, _ := net.SplitHostPort(r.RemoteAddr)
			name := task
			if at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && name == "" {
				name = at.IP.String()
			}
			_ = json.NewEncoder(w).Encode(Said{Task: name, Client: client})
		}),
	}
	ended := make(chan error, 1)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	// A client that is named by the PROXY protocol is the one that is seen.
	go func() { ended <- server.Serve(&proxyproto.Listener{Listener: listener, ConnPolicy: headerOrNot}) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	within, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := server.Shutdown(within); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// headerOrNot takes connections with and without a header.
func headerOrNot(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.USE, nil }

// echo answers each packet with the task.
func echo(packets net.PacketConn, task string) {
	buffer := make([]byte, 1500)
	for {
		_, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = packets.WriteTo([]byte(task), from)
	}
}
