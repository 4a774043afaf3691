package cluster

import (
	"bytes"
	"io"
	"net/http"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/server"
)

// keep reads a request's body, and returns what makes the same request again for the
// Engine.
func keep(r *http.Request) (func() *http.Request, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, server.BadRequest(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	return func() *http.Request {
		again := r.Clone(r.Context())
		again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		return again
	}, nil
}

// olderThan leaves the networks that were created before a time.
func olderThan(all []*musterv1.Network, until []string) ([]*musterv1.Network, error) {
	if len(until) == 0 {
		return all, nil
	}
	if len(until) > 1 {
		return nil, server.Errorf(http.StatusBadRequest, "more than one until filter specified")
	}
	before, err := instant(until[0], time.Now())
	if err != nil {
		return nil, server.BadRequest(err)
	}
	var out []*musterv1.Network
	for _, n := range all {
		if n.GetMeta().GetCreatedAt().AsTime().Before(before) {
			out = append(out, n)
		}
	}
	return out, nil
}
