package simulation

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
	networks "github.com/musterhq/muster/workerd/network"
	contract "github.com/musterhq/muster/workerd/network/contractv1"
)

// node is a machine with a worker, over all of the lives of both.
type node struct {
	name   string
	number int
	c      *cluster
	// dataDir is where the worker keeps its tasks; "" for one that remembers nothing.
	dataDir string
	// reports is what befalls the reports that it sends.
	reports *reports
	// orders is what befalls what it is told.
	orders *orders

	mu sync.Mutex
	// gone is true when it never returns.
	gone bool
	// executor is what runs the tasks: it outlives workers, and not the machine.
	executor *null.Executor
	// kernel is what the network plugin has set up: it outlives the same.
	kernel *nullnetwork.Kernel
	life   *nodeLife // nil while the worker is down
	// troubled is when something last happened that excuses a task too many, and lost says
	// that it continues: the managers do not hear the worker.
	troubled time.Time
	lost     bool
}

// nodeLife is one process.
type nodeLife struct {
	host   *host
	cancel context.CancelFunc
	done   chan struct{}
}

func newNode(c *cluster, name string, number int) *node {
	n := &node{name: name, number: number, c: c, reports: newReports(), orders: &orders{}, troubled: time.Now()}
	if number%8 == 3 {
		n.dataDir = filepath.Join(c.dir, name)
	}
	return n
}

// resources are what a node has.
func resources() *musterv1.Resources {
	return &musterv1.Resources{NanoCpus: 4e9, MemoryBytes: 4 << 30}
}

// start starts the worker, unless it runs or is gone for good.
func (n *node) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life != nil || n.gone {
		return
	}
	n.troubled = time.Now()
	if n.executor == nil {
		e, err := null.New(null.Config{Version: "simulation"})
		if err != nil {
			n.c.violated("%s: make an executor: %v", n.name, err)
			return
		}
		n.executor, n.kernel = e, nullnetwork.NewKernel()
	}
	l := &nodeLife{host: n.c.net.join(n.name), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	set, err := executor.NewFixed(ctx, contractv1.FromServer(sdk.NewServer(n.c.mutation.executor(n.executor))))
	if err != nil {
		n.c.violated("%s: describe its executor: %v", n.name, err)
		cancel()
		return
	}
	plugins, err := networks.NewFixed(ctx, contract.New(nullnetwork.New(n.kernel, nullnetwork.Config{Version: "simulation"})))
	if err != nil {
		n.c.violated("%s: describe its network plugin: %v", n.name, err)
		cancel()
		return
	}
	cfg := workerd.DefaultConfig()
	cfg.DataPathAddress = dataPathAddress(n.number)
	cfg.NodeID, cfg.Hostname, cfg.DataDir, cfg.Resources = n.name, n.name, n.dataDir, resources()
	for i := range n.c.script.Size.Managers {
		cfg.Dispatchers = append(cfg.Dispatchers, addressOf(replica("dispatcherd", i+1)))
	}
	w, err := workerd.New(workerd.Env{
		Logger: n.c.journal.logger(n.name, zapcore.ErrorLevel), Executors: set, Networks: plugins, Version: "simulation",
		Dial: daemon.Dialer(daemon.Plain().Client, grpc.WithContextDialer(l.host.dial), grpc.WithChainStreamInterceptor(n.c.mutation.streams(n.reports.intercept, n.orders.intercept)...)),
	}, cfg)
	if err != nil {
		n.c.violated("%s: %v", n.name, err)
		cancel()
		return
	}
	n.life = l
	n.c.wg.Go(func() {
		defer close(l.done)
		defer cancel()
		if err := w.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.c.violated("worker %s: %v", n.name, err)
		}
	})
}

func (n *node) take() *nodeLife {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.life
	n.life = nil
	n.troubled = time.Now()
	return l
}

// kill ends the worker as SIGKILL does. Its tasks run on, unless the power fails:
// then there is no notice, and nothing is left of the tasks.
func (n *node) kill(powerFails, silent bool) {
	l := n.take()
	if l != nil {
		l.host.die(silent || powerFails)
		l.cancel()
		// The next one finds the data directory as this one leaves it.
		<-l.done
	}
	n.checkNetworks()
	if powerFails {
		n.mu.Lock()
		n.executor, n.kernel = nil, nil
		n.mu.Unlock()
	}
}

// checkNetworks has the judge hear of what the network plugin was told and should not have
// been: an address that has two holders, or calls in the wrong order.
func (n *node) checkNetworks() {
	n.mu.Lock()
	k := n.kernel
	n.mu.Unlock()
	if k == nil {
		return
	}
	for _, v := range k.Violations() {
		n.c.violated("%s: %s", n.name, v)
	}
}

// dataPathAddress is where other nodes send the traffic of networks to a node.
func dataPathAddress(number int) string {
	return netip.AddrFrom4([4]byte{192, 168, byte(number / 256), byte(number)}).String()
}

// stop ends the worker in order.
func (n *node) stop() {
	if l := n.take(); l != nil {
		l.cancel()
		<-l.done
		l.host.die(false)
	}
	n.checkNetworks()
}

// leave ends the machine for good.
func (n *node) leave(silent bool) {
	n.mu.Lock()
	n.gone = true
	n.mu.Unlock()
	n.kill(true, silent)
}

// setLost notes whether the managers hear the worker.
func (n *node) setLost(lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost || lost {
		n.troubled = time.Now()
	}
	n.lost = lost
}

// state tells how the node is.
func (n *node) state() (e *null.Executor, up, gone bool, troubled time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost {
		n.troubled = time.Now()
	}
	return n.executor, n.life != nil, n.gone, n.troubled
}
