package limit

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/quota"
)

// streams bounds how many streams of one kind each client has open.
type streams struct {
	// limit is the name of the bound in metrics and logs.
	limit string
	// what names the streams in errors, and flag the setting that bounds them.
	what, flag string
	most       int
	open       *quota.Open
}

// Stream admits a call of a streaming method. The caller calls release when the
// stream has ended. The context knows the caller and the peer.
func (l *Limits) Stream(ctx context.Context, method string) (release func(), err error) {
	if l == nil || isManager(ctx) {
		return func() {}, nil
	}
	s := l.watches
	if method == musterv1.ControlService_ServiceLogs_FullMethodName || method == musterv1.ControlService_TaskLogs_FullMethodName {
		s = l.logs
	}
	client := ClientOf(ctx)
	if !s.open.Enter(client) {
		return nil, l.refuse(s.limit, method, client, status.Errorf(codes.ResourceExhausted,
			"%s has %d %s open, the most that one client may have at one apid: close one of them first, or ask an administrator to raise %s of apid",
			client, s.most, s.what, s.flag))
	}
	return func() { s.open.Leave(client) }, nil
}

// ClientOf names the client of a call: its identity ("viewer ada"), or the host
// that it comes from where there is no identity.
func ClientOf(ctx context.Context) string {
	if caller, known := auth.CallerOf(ctx); known {
		return caller.Identity.String()
	}
	return auth.HostOf(addressIn(ctx))
}

func isManager(ctx context.Context) bool {
	caller, known := auth.CallerOf(ctx)
	return known && auth.IsManager(caller.Role)
}
