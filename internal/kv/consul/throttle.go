package consul

import (
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// The limits of Consul's agent for clients. The agent answers 429 before the request has
// any effect.
const (
	connLimit = "limits.http_max_conns_per_client"
	// connLimitDefault is Consul's default. Clients without permission cannot read the
	// agent's actual setting.
	connLimitDefault = 200
	requestLimit     = "limits.request_limits or limits.rpc_rate"
)

// Bounds of the pause before a refused request is sent again.
const (
	firstThrottlePause = 50 * time.Millisecond
	mostThrottlePause  = time.Second
)

// limitLogInterval is the minimum time between two log lines about limits.
const limitLogInterval = time.Minute

// LimitError says that Consul refuses requests of this client because of one of Consul's
// limits. It wraps kv.ErrLimited.
type LimitError struct {
	// Limit is the setting of Consul's agent.
	Limit string
	// Connections is the number of connections that this process had open to Consul.
	Connections int64
}

func (e *LimitError) Error() string {
	if e.Limit == connLimit {
		return fmt.Sprintf("consul refuses connections: all clients at this address together reach %s (default %d), %d of them from this process; raise it in the agent's configuration",
			e.Limit, connLimitDefault, e.Connections)
	}
	return fmt.Sprintf("consul refuses requests: its rate limit is reached; raise %s in its configuration", e.Limit)
}

// Unwrap returns the class of the error.
func (e *LimitError) Unwrap() error { return kv.ErrLimited }

// throttle repeats requests that Consul refuses because of a limit, with growing pauses,
// until their contexts end. Refused requests have no effect. Requests over open
// connections continue, including the session's reports.
type throttle struct {
	next http.RoundTripper
	open func() int64
	log  *zap.Logger
	// logs limits the rate of log lines about limits.
	logs rate.Sometimes
}

func (t *throttle) RoundTrip(req *http.Request) (*http.Response, error) {
	retry := backoff.New(firstThrottlePause, mostThrottlePause)
	for {
		resp, err := t.next.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests {
			return resp, err
		}
		_ = resp.Body.Close()
		limit := &LimitError{Limit: requestLimit, Connections: t.open()}
		if resp.Close {
			// The agent applies its limit of connections before it reads the request, and
			// closes the connection. Other answers keep the connection open.
			limit.Limit = connLimit
		}
		t.logs.Do(func() { t.logLimit(limit) })
		if err := retry.Wait(req.Context()); err != nil {
			return nil, fmt.Errorf("%w: %w", limit, err)
		}
		if req, err = again(req); err != nil {
			return nil, fmt.Errorf("%w: %w", limit, err)
		}
	}
}

// again returns a copy of a request for another attempt.
func again(req *http.Request) (*http.Request, error) {
	if req.GetBody == nil {
		return req, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	next := req.Clone(req.Context())
	next.Body = body
	return next, nil
}

func (t *throttle) logLimit(limit *LimitError) {
	fields := []zap.Field{zap.String("limit", limit.Limit), zap.Int64("connections_of_this_process", limit.Connections)}
	if limit.Limit == connLimit {
		fields = append(fields, zap.Int("default", connLimitDefault))
	}
	t.log.Warn("consul limit reached; retrying", fields...)
}
