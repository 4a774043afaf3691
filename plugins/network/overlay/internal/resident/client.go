//go:build linux

package resident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/internal/durable"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

const (
	// startTime bounds how long a process may take to start.
	startTime = 10 * time.Second
	// callTime bounds how long a call may take.
	callTime = 30 * time.Second
	// statsTime bounds how long counts may take.
	statsTime = time.Second
	// minChanges is the size in bytes of changes that a journal may always hold.
	minChanges = 1 << 20
)

// Model is all that a process must know.
type Model struct {
	Complete *networkv1.ApplyRequest
	Tasks    []*networkv1.AttachRequest
}

// Client starts the process, finds the one that runs, and tells it what it must know.
type Client struct {
	config Config
	model  func() Model
	log    *zap.Logger
	ctx    context.Context
	cancel context.CancelFunc
	watch  sync.WaitGroup

	// mu is held during calls.
	mu   sync.Mutex
	conn *grpc.ClientConn
	// told and changed are the sizes of the last complete request and of the changes since.
	told, changed int
	stats         *networkv1.StatsResponse
	// partSize is about how large a message may be.
	partSize int
}

// NewClient returns a client. It calls model when a process does not know what it must;
// the caller of the other methods must not hold what model needs.
func NewClient(config Config, model func() Model, log *zap.Logger) *Client {
	c := &Client{config: config, model: model, log: log, partSize: networksdk.PartSize}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Resume starts the process if one has left a journal and none runs. It answers from that
// until the plugin has a model.
func (c *Client) Resume(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := c.ensure(ctx, true); err != nil {
		c.log.Warn("failed to start name server", zap.Error(err))
	}
}

// Close closes the connection. The process continues.
func (c *Client) Close() error {
	c.cancel()
	c.mu.Lock()
	err := c.disconnect()
	c.mu.Unlock()
	c.watch.Wait()
	return err
}

func (c *Client) disconnect() error {
	if c.conn == nil {
		return nil
	}
	conn := c.conn
	c.conn = nil
	return conn.Close()
}

// Apply tells the process of changes, which the model contains already. It returns what
// went wrong by network. With the last network the process ends.
func (c *Client) Apply(ctx context.Context, request *networkv1.ApplyRequest, last bool) (map[string]error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failed map[string]error
	err := c.call(ctx, true, func(ctx context.Context, rpc networkv1.NetworkServiceClient) (err error) {
		change := needed(request)
		c.changed += proto.Size(change)
		if change.GetComplete() || c.overgrown() {
			failed, err = c.tellAll(ctx, rpc, needed(c.model().Complete))
		} else {
			failed, err = c.tell(ctx, rpc, change)
		}
		return err
	})
	if last {
		err = errors.Join(err, c.disconnect())
	}
	return failed, err
}

// needed returns the part of a request that the process needs.
func needed(request *networkv1.ApplyRequest) *networkv1.ApplyRequest {
	part := &networkv1.ApplyRequest{
		Complete: request.GetComplete(), Node: request.GetNode(), RemovedNetworks: request.GetRemovedNetworks(),
		Services: request.GetServices(), RemovedServices: request.GetRemovedServices(), Backends: request.GetBackends(),
	}
	for _, n := range request.GetNetworks() {
		part.Networks = append(part.Networks, &networkv1.Network{
			Id: n.GetId(), Name: n.GetName(), Driver: n.GetDriver(), Subnets: n.GetSubnets(), Internal: n.GetInternal(), Ingress: n.GetIngress(),
			NodeAddresses: n.GetNodeAddresses(),
		})
	}
	return part
}

// Attach tells the process of a task that the model contains.
func (c *Client) Attach(ctx context.Context, request *networkv1.AttachRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.call(ctx, true, func(ctx context.Context, rpc networkv1.NetworkServiceClient) error {
		if _, err := rpc.Attach(ctx, request); err != nil {
			return err
		}
		return c.grown(ctx, rpc, proto.Size(request))
	})
}

// Detach tells the process, if there is one, that a task is gone.
func (c *Client) Detach(ctx context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.call(ctx, false, func(ctx context.Context, rpc networkv1.NetworkServiceClient) error {
		if _, err := rpc.Detach(ctx, &networkv1.DetachRequest{TaskId: id}); err != nil {
			return err
		}
		return c.grown(ctx, rpc, len(id))
	})
}

// grown notes that the journal has grown by so many bytes. One that is mostly history is
// begun again with what is true now.
func (c *Client) grown(ctx context.Context, rpc networkv1.NetworkServiceClient, size int) error {
	if c.changed += size; !c.overgrown() {
		return nil
	}
	complete := needed(c.model().Complete)
	if complete.GetNode() == nil {
		return nil
	}
	_, err := c.tellAll(ctx, rpc, complete)
	return err
}

// overgrown reports whether the journal is mostly history.
func (c *Client) overgrown() bool { return c.changed > max(minChanges, c.told) }

// tellAll tells the process a complete set, with which it begins its journal again.
func (c *Client) tellAll(ctx context.Context, rpc networkv1.NetworkServiceClient, complete *networkv1.ApplyRequest) (map[string]error, error) {
	c.told, c.changed = proto.Size(complete), 0
	return c.tell(ctx, rpc, complete)
}

// tell tells the process a set or a change, in parts. It returns what went wrong by network.
func (c *Client) tell(ctx context.Context, rpc networkv1.NetworkServiceClient, request *networkv1.ApplyRequest) (map[string]error, error) {
	failed := make(map[string]error)
	for _, part := range networksdk.Split(request, c.partSize) {
		response, err := rpc.Apply(ctx, part)
		if err != nil {
			return failed, err
		}
		for _, e := range response.GetErrors() {
			failed[e.GetNetworkId()] = errors.New(e.GetMessage())
		}
	}
	return failed, nil
}

// Stats returns the counts of the process, or those that it gave last.
func (c *Client) Stats(ctx context.Context) *networkv1.StatsResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(ctx, statsTime)
		defer cancel()
		if stats, err := networkv1.NewNetworkServiceClient(c.conn).Stats(ctx, &networkv1.StatsRequest{}); err == nil {
			c.stats = stats
		}
	}
	return c.stats
}

// call makes a call that can be repeated. If the process is gone, another one is started,
// unless none is needed.
func (c *Client) call(ctx context.Context, start bool, call func(context.Context, networkv1.NetworkServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for again := range 2 {
		if err := c.ensure(ctx, start); err != nil {
			return fmt.Errorf("serve names: %w", err)
		}
		if c.conn == nil {
			return nil
		}
		err := call(ctx, networkv1.NewNetworkServiceClient(c.conn))
		if err == nil {
			return nil
		}
		if code := status.Code(err); again > 0 || code != codes.Unavailable && code != codes.FailedPrecondition {
			return fmt.Errorf("serve names: %w", err)
		}
		if err := c.disconnect(); err != nil {
			return err
		}
	}
	return nil
}

// ensure connects to the process, and starts it if it does not run or runs another program.
// The process knows the model then, unless the plugin has none yet.
func (c *Client) ensure(ctx context.Context, start bool) error {
	if c.conn != nil {
		return nil
	}
	if c.ctx.Err() != nil {
		return errors.New("the plugin ends")
	}
	model := c.model()
	if model.Complete.GetNode() == nil {
		_, err := os.Stat(c.config.path(journalFile))
		start = start && err == nil
	} else {
		start = start && len(model.Complete.GetNetworks()) > 0
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	if conn == nil {
		if !start {
			return nil
		}
		if err := c.start(); err != nil {
			return err
		}
		if conn, err = c.connect(ctx); err != nil {
			return err
		}
		if conn == nil {
			return errors.New("the process has ended")
		}
	}
	rpc := networkv1.NewNetworkServiceClient(conn)
	err = func() error {
		if model.Complete.GetNode() == nil {
			// The plugin knows less than the process.
			return nil
		}
		if _, err := c.tellAll(ctx, rpc, needed(model.Complete)); err != nil {
			return err
		}
		for _, t := range model.Tasks {
			if _, err := rpc.Attach(ctx, t); err != nil && status.Code(err) == codes.Unavailable {
				return err
			} else if err != nil {
				// Its networks are not all there yet. The worker attaches it again.
				c.log.Debug("failed to tell the name server of a task", zap.String("task", t.GetTaskId()), zap.Error(err))
			}
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	c.conn = conn
	c.watch.Go(func() { c.watchOver(conn) })
	return nil
}

// connect returns a connection to the process that runs this program; nil if there is
// none.
func (c *Client) connect(ctx context.Context) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:names", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(networksdk.MaxRequest)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := durable.Dial(ctx, c.config.Dir, controlSocket, "unix")
			if err != nil {
				return nil, err
			}
			return conn, nil
		}))
	if err != nil {
		return nil, err
	}
	own, err := c.config.identity()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	said, err := networkv1.NewNetworkServiceClient(conn).Describe(ctx, &networkv1.DescribeRequest{})
	switch {
	case err == nil && said.GetVersion() == own:
		return conn, nil
	case err == nil || status.Code(err) == codes.Unavailable:
		return nil, conn.Close()
	}
	return nil, errors.Join(err, conn.Close())
}

// start starts a process and returns when it answers. It takes over from one that runs.
func (c *Client) start() error {
	if err := os.MkdirAll(c.config.Dir, 0o700); err != nil {
		return err
	}
	config, err := json.Marshal(c.config)
	if err != nil {
		return err
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ours.Close() }()
	process, err := durable.Start(durable.Process{
		Args: []string{"muster-names", argument, string(config)}, Log: c.config.path(logFile), Files: []*os.File{theirs},
	})
	if err = errors.Join(err, theirs.Close()); err != nil {
		return err
	}
	// It ends long after this process, as a rule.
	go func() { _, _ = process.Wait() }()
	err = ours.SetReadDeadline(time.Now().Add(startTime))
	if err == nil {
		if _, failed := ours.Read(make([]byte, 1)); failed != nil {
			err = fmt.Errorf("the process does not answer, see %s: %w", c.config.path(logFile), failed)
		}
	}
	if err != nil {
		return errors.Join(err, process.Kill())
	}
	return nil
}

// watchOver starts another process if the one that is connected ends.
func (c *Client) watchOver(conn *grpc.ClientConn) {
	for conn.GetState() == connectivity.Ready {
		if !conn.WaitForStateChange(c.ctx, connectivity.Ready) {
			return
		}
	}
	c.mu.Lock()
	if c.conn != conn {
		c.mu.Unlock()
		return
	}
	if err := c.disconnect(); err != nil {
		c.log.Warn("failed to close connection to name server", zap.Error(err))
	}
	c.log.Warn("name server ended")
	c.mu.Unlock()
	_, err := backoff.Retry(c.ctx, func() (struct{}, error) {
		ctx, cancel := context.WithTimeout(c.ctx, callTime)
		defer cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		err := c.ensure(ctx, true)
		if err != nil {
			c.log.Warn("failed to start name server", zap.Error(err))
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0))
	if err != nil && c.ctx.Err() == nil {
		c.log.Error("failed to start name server", zap.Error(err))
	}
}
