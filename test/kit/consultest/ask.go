package consultest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"
)

// startTimeout bounds the time until a server has a leader.
const startTimeout = 2 * time.Minute

// waitForLeader waits until the server's cluster has a leader and the server is in its
// catalog, which sessions need.
func (s *Server) waitForLeader() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.known(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.process.Done():
			return fmt.Errorf("consul ended; see %s", filepath.Join(s.dir, "consul.log"))
		case <-ctx.Done():
			return fmt.Errorf("consul has no leader after %v; see %s", startTimeout, filepath.Join(s.dir, "consul.log"))
		}
	}
}

// known reports whether the server has a leader that considers it alive.
func (s *Server) known(ctx context.Context) bool {
	var checks []struct{ CheckID, Status string }
	if s.get(ctx, "/v1/health/node/"+s.Node, &checks) != nil {
		return false
	}
	for _, c := range checks {
		if c.CheckID == "serfHealth" && c.Status == "passing" {
			return true
		}
	}
	return false
}

// leads reports whether the server says that it is the leader.
func (s *Server) leads(ctx context.Context) (bool, error) {
	var self struct {
		Stats struct {
			Consul struct {
				Leader string `json:"leader"`
			} `json:"consul"`
		}
	}
	if err := s.get(ctx, "/v1/agent/self", &self); err != nil {
		return false, err
	}
	return self.Stats.Consul.Leader == "true", nil
}

// Save writes a snapshot of all data in Consul, as `consul snapshot save` does.
func (s *Server) Save(ctx context.Context, to io.Writer) error {
	resp, err := s.call(ctx, http.MethodGet, "/v1/snapshot", nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// Restore replaces all data in Consul by a snapshot, as `consul snapshot restore` does. It
// retries while there is no leader.
func (s *Server) Restore(ctx context.Context, from []byte) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		resp, err := s.call(ctx, http.MethodPut, "/v1/snapshot", bytes.NewReader(from))
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// Deregister removes a node, with its services and sessions, from Consul's catalog.
func (s *Server) Deregister(ctx context.Context, node string) error {
	body, err := json.Marshal(map[string]string{"Node": node})
	if err != nil {
		return fmt.Errorf("deregister %s: %w", node, err)
	}
	resp, err := s.call(ctx, http.MethodPut, "/v1/catalog/deregister", bytes.NewReader(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// askTimeout bounds one request. Callers repeat requests that fail.
const askTimeout = 10 * time.Second

// get asks the server's HTTP API.
func (s *Server) get(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := s.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(answer), resp.Body.Close()); err != nil {
		return fmt.Errorf("consul's answer to %s: %w", path, err)
	}
	return nil
}

// call makes a request. The caller closes the answer.
func (s *Server) call(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Address+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask consul: %w", err)
	}
	// A server without ACLs ignores it.
	req.Header.Set("X-Consul-Token", ManagementToken)
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask consul: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("ask consul: %s %s: %s: %s", method, path, resp.Status, said)
	}
	return resp, nil
}
