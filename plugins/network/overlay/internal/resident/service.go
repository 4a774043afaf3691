//go:build linux

package resident

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/dns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// service answers the plugin. It speaks the contract of network plugins, of which it does
// a part: names. The SDK checks requests before they get here.
type service struct {
	config Config
	log    *zap.Logger
	host   *netns.Namespace
	names  *dns.Server
	relays *relays
	// partSize is about how large an entry of the journal may be.
	partSize int

	// succeeded is set once another process has taken over.
	succeeded atomic.Bool

	// mu guards what follows.
	mu      sync.Mutex
	journal journal
	// serving is set once sockets may be opened.
	serving  bool
	node     *networkv1.Node
	networks map[string]*listening
	tasks    map[string]*networkv1.AttachRequest
	// idle gets a value when the last network is gone.
	idle chan struct{}
}

var (
	_ networksdk.Plugin         = (*service)(nil)
	_ networksdk.Statser        = (*service)(nil)
	_ networksdk.NamespaceMaker = (*service)(nil)
)

func newService(config Config, log *zap.Logger) (*service, error) {
	host, err := netns.Open(config.Host)
	if err != nil {
		return nil, err
	}
	s := &service{
		config: config, log: log, host: host, relays: newRelays(log), partSize: networksdk.PartSize, journal: journal{path: config.path(journalFile)},
		networks: make(map[string]*listening), tasks: make(map[string]*networkv1.AttachRequest), idle: make(chan struct{}, 1),
	}
	s.names = dns.New(dns.Config{Self: link.Gateway, ResolvConf: config.Resolvers, Logger: log, Dial: s.dialHost})
	return s, nil
}

// MakesNamespaces says that a task may come without a namespace: nothing is done in it.
func (*service) MakesNamespaces() {}

// Describe says which program the process runs, and with what configuration.
func (s *service) Describe(context.Context) (*networkv1.DescribeResponse, error) {
	version, err := s.config.identity()
	return &networkv1.DescribeResponse{Name: "overlay", Version: version, Healthy: true}, err
}

// load tells a server of the service what the process before it was told.
func (s *service) load(ctx context.Context, server networkv1.NetworkServiceServer) error {
	// While it is read, it is not open: nothing is appended to it.
	return s.journal.open(func(m proto.Message) error {
		var err error
		switch m := m.(type) {
		case *networkv1.ApplyRequest:
			_, err = server.Apply(ctx, m)
		case *networkv1.AttachRequest:
			_, err = server.Attach(ctx, m)
		case *networkv1.DetachRequest:
			_, err = server.Detach(ctx, m)
		}
		return err
	})
}

// record writes down what the process was told. If that is not possible, a process that
// starts again knows nothing until the plugin tells it.
func (s *service) record(m proto.Message) {
	if s.journal.file == nil {
		return
	}
	if err := s.journal.add(m); err != nil {
		s.log.Warn("failed to write journal", zap.Error(err))
		s.journal.drop()
	}
}

// Apply takes over networks, and answers on them. It can be called with nothing to
// change: sockets are opened where there are none.
func (s *service) Apply(_ context.Context, request *networkv1.ApplyRequest) (map[string]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node = request.GetNode()
	switch {
	case !request.GetComplete():
		if !isEmpty(request) {
			s.record(request)
		}
	case s.serving:
		var messages []proto.Message
		for _, part := range networksdk.Split(request, s.partSize) {
			messages = append(messages, part)
		}
		for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
			messages = append(messages, s.tasks[id])
		}
		if err := s.journal.replace(messages...); err != nil {
			s.log.Warn("failed to write journal", zap.Error(err))
			s.journal.drop()
		}
	}
	s.names.Apply(request)
	s.relays.apply(request)
	gone := request.GetRemovedNetworks()
	if request.GetComplete() {
		wanted := make(map[string]bool)
		for _, n := range request.GetNetworks() {
			wanted[n.GetId()] = true
		}
		for id := range s.networks {
			if !wanted[id] {
				gone = append(gone, id)
			}
		}
	}
	for _, id := range gone {
		s.networks[id].close()
		delete(s.networks, id)
	}
	for _, n := range request.GetNetworks() {
		if _, known := s.networks[n.GetId()]; !known {
			s.networks[n.GetId()] = nil
		}
	}
	if !s.serving {
		return nil, nil
	}
	if len(s.networks) == 0 {
		s.finish()
	}
	return s.listenAll(), nil
}

func isEmpty(r *networkv1.ApplyRequest) bool {
	return len(r.GetNetworks())+len(r.GetRemovedNetworks())+len(r.GetServices())+len(r.GetRemovedServices())+len(r.GetBackends()) == 0
}

// Attach makes a task known.
func (s *service) Attach(_ context.Context, request *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !proto.Equal(s.tasks[request.GetTaskId()], request) {
		s.record(request)
		s.tasks[request.GetTaskId()] = request
		s.names.Attach(request)
	}
	return &networkv1.AttachResponse{}, nil
}

// Detach makes a task unknown.
func (s *service) Detach(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.tasks[id]; known {
		s.record(&networkv1.DetachRequest{TaskId: id})
		delete(s.tasks, id)
		s.names.Detach(id)
	}
	return nil
}

// List returns the tasks that are known.
func (s *service) List(context.Context, string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.tasks)), nil
}

// Stats returns counts since the process began.
func (s *service) Stats(context.Context) (*networkv1.StatsResponse, error) {
	names := s.names.Stats()
	return &networkv1.StatsResponse{DnsAnswers: names.Answers, DnsFailures: names.Failures, DroppedPackets: names.Dropped}, nil
}

// serve opens sockets from now on. Those that another process handed over are taken.
func (s *service) serve(taken map[string]*sockets) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = true
	for id, t := range taken {
		if listens, known := s.networks[id]; !known || listens != nil {
			t.close()
			continue
		}
		s.networks[id] = s.answer(id, t)
	}
	for id, err := range s.listenAll() {
		s.log.Warn("failed to open sockets of network", zap.String("network", id), zap.Error(err))
	}
}

// retire stops answering, and returns when what was read has been answered. Sockets that
// were handed over stay open elsewhere.
func (s *service) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = false
	s.relays.stop()
	for id, l := range s.networks {
		l.close()
		s.networks[id] = nil
	}
	s.journal.close()
}
