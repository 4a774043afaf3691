// Package cli is what a user types: the commands that speak to a cluster's
// control API. Where Docker's command line has the same verb, flags are the
// same.
package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
)

// DefaultAddress is where apid listens by default.
const DefaultAddress = "127.0.0.1:7700"

// callTimeout bounds a call that is neither a stream nor a wait.
const callTimeout = 30 * time.Second

// CLI is what all commands share.
type CLI struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Terminal says that Err is a terminal: progress may be redrawn.
	Terminal bool
	// OutTerminal says that Out is one: nothing is printed on it that it acts on.
	OutTerminal bool
	Version     string
	// Local runs a cluster for commands that find none.
	Local LocalCluster

	address, token, context string
	tls                     tlsFlags
	// connecting is held while client connects: commands ask from several goroutines.
	connecting sync.Mutex
	conn       *grpc.ClientConn
	answered   answered
}

// AddCommands adds all commands, and the flags that say where the cluster is,
// to the root command.
func (c *CLI) AddCommands(root *cobra.Command) {
	var commands []*cobra.Command
	commands = append(commands, c.service(), c.task(), c.ps(), c.logs(), c.node(), c.network(), c.volume(), c.config(), c.secret(), c.stack(), c.up(), c.plugin(), c.events(), c.cluster(), c.tokens(), c.certificates(), c.login(), c.contexts(), c.version())
	for _, cmd := range commands {
		cmd.GroupID = "cluster"
		fs := cmd.PersistentFlags()
		fs.StringVarP(&c.address, "address", "A", os.Getenv("MUSTER_ADDRESS"), "host:port of apid's gRPC server, or of several with commas between, of which the first that answers is used (environment: MUSTER_ADDRESS; default: that of the context, or "+DefaultAddress+")")
		fs.StringVar(&c.context, "context", os.Getenv("MUSTER_CONTEXT"), "context to use (environment: MUSTER_CONTEXT)")
		c.tls.add(fs)
	}
	// Not a flag: others on the machine see those.
	c.token = os.Getenv("MUSTER_TOKEN")
	root.AddGroup(&cobra.Group{ID: "cluster", Title: "Use a cluster:"})
	root.AddCommand(commands...)
	for _, cmd := range commands {
		c.completions(cmd)
	}
}

// Close closes the connection, if one was made.
func (c *CLI) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// client returns a client of the control API. It connects when it is first
// used.
func (c *CLI) client() (musterv1.ControlServiceClient, error) {
	c.connecting.Lock()
	defer c.connecting.Unlock()
	if c.conn == nil {
		t, err := c.target()
		if err != nil {
			return nil, err
		}
		if c.conn, err = c.dial(t); err != nil {
			return nil, err
		}
	}
	return musterv1.NewControlServiceClient(c.conn), nil
}

// dial connects to a cluster.
func (c *CLI) dial(t *target) (*grpc.ClientConn, error) {
	if err := checkAddresses(t.Address); err != nil {
		return nil, usage("--address (or MUSTER_ADDRESS): %w", err)
	}
	creds, err := c.tls.credentials(t)
	if err != nil {
		return nil, usage("%w", err)
	}
	options := append(RetryRefused(), grpc.WithStatsHandler(&c.answered))
	if t.Token != "" {
		if creds.Info().SecurityProtocol != "tls" {
			return nil, usage("a token is not sent in the clear: give --tls-ca-file, or use a context (muster login)")
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer(t.Token)))
	}
	return daemon.Dialer(creds, options...)(t.Address)
}

// checkAddresses checks one address or several with commas between.
func checkAddresses(addresses string) error {
	for address := range strings.SplitSeq(addresses, ",") {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("%q is not host:port", address)
		}
	}
	return nil
}

// bearer sends an API token with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// api has the methods of the control API.
type api = musterv1.ControlServiceClient

// method is a method of the control API, or a function that calls one.
type method[Req, Resp any] = func(client api, ctx context.Context, req Req, options ...grpc.CallOption) (Resp, error)

// call runs a command's one call within the time that calls have.
func call[Req, Resp any](c *CLI, cmd *cobra.Command, m method[Req, Resp], req Req) (Resp, error) {
	client, err := c.client()
	if err != nil {
		var none Resp
		return none, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
	defer cancel()
	var header metadata.MD
	resp, err := m(client, ctx, req, grpc.Header(&header))
	warnStale(cmd, header)
	return resp, err
}

// ask makes a command that makes one call and prints the answer.
func ask[Req, Resp any](c *CLI, m method[Req, Resp], req Req, print func(Resp) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		resp, err := call(c, cmd, m, req)
		if err != nil {
			return err
		}
		return print(resp)
	}
}

// warnStale says that an answer may be old, once a command.
func warnStale(cmd *cobra.Command, header metadata.MD) {
	if old := header.Get(musterv1.StaleHeader); len(old) > 0 && cmd.Annotations[musterv1.StaleHeader] == "" {
		cmd.Annotations = map[string]string{musterv1.StaleHeader: old[0]}
		cmd.PrintErrf("warning: the server has had no contact with the store for %s s: what it shows may be as old\n", old[0])
	}
}

// warnStaleStream does it for a stream that has begun.
func warnStaleStream(cmd *cobra.Command, stream grpc.ClientStream) {
	// Without a header the stream has failed, and Recv says why.
	if header, err := stream.Header(); err == nil {
		warnStale(cmd, header)
	}
}

func (c *CLI) printf(format string, a ...any) {
	// There is nowhere to report that standard output is gone.
	_, _ = fmt.Fprintf(c.Out, format, a...)
}

// pageSize is the largest page of a list.
const pageSize = 1000

// group makes a command that only has commands of its own.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(commands...)
	return cmd
}
