package auth

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// ServerOptions have a gRPC server ask the guard first.
func (g *Guard) ServerOptions() []grpc.ServerOption {
	if g == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			ctx, err := g.admitCall(ctx, info.FullMethod, presentedIn(ctx))
			if err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			p := presentedIn(stream.Context())
			ctx, err := g.admitCall(stream.Context(), info.FullMethod, p)
			if err != nil {
				return err
			}
			return g.revalidate(stream, ctx, info.FullMethod, p, func(s grpc.ServerStream) error { return next(srv, s) })
		}),
	}
}

// admitted is a stream whose context knows the caller.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a *admitted) Context() context.Context { return a.ctx }

// presentedIn reads the credentials of a gRPC call.
func presentedIn(ctx context.Context) presented {
	var p presented
	if from, ok := peer.FromContext(ctx); ok {
		if from.Addr != nil {
			p.address = from.Addr.String()
		}
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			p.tls = &info.State
		}
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		p.authorization = md.Get("authorization")
	}
	return p
}

// Handshakes wraps credentials so that the guard logs and counts the connections that they
// refuse.
func (g *Guard) Handshakes(c credentials.TransportCredentials) credentials.TransportCredentials {
	if g == nil {
		return c
	}
	return &handshakes{c, g}
}

type handshakes struct {
	credentials.TransportCredentials
	guard *Guard
}

func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ServerHandshake(raw)
	// A peer that sends nothing only checks whether the port is open, and this side
	// closes connections of which too many are open.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, net.ErrClosed) {
		h.guard.refuseConnection(raw.RemoteAddr(), zap.Error(err))
	}
	return conn, info, err
}

func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.guard}
}

func (g *Guard) refuseConnection(from net.Addr, why zap.Field) {
	g.handshakes.Inc()
	g.log.Warn("connection is refused", zap.Stringer("peer", from), why)
}
