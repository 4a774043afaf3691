package cli

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/stats"
)

// answered notes whether a server has answered any call. An error of such a
// server is about the cluster behind it, not about the way to it.
type answered struct{ yes atomic.Bool }

func (a *answered) HandleRPC(_ context.Context, s stats.RPCStats) {
	// A server's status comes in headers or trailers, unlike one that gRPC makes here.
	switch s.(type) {
	case *stats.InHeader, *stats.InTrailer:
		a.yes.Store(true)
	}
}

func (*answered) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (*answered) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*answered) HandleConn(context.Context, stats.ConnStats) {}
