package security_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// evil is what a task of the tests writes: it clears the screen of a terminal.
const evil = "\x1b[2Jhello\u009b31m\x07"

// TestLogs attacks logs, in a cluster of which each manager runs twice.
func TestLogs(t *testing.T) {
	t.Parallel()
	need.Program(t, "consul")
	const perReplica = 200
	tag := strings.ToLower(rand.Text()[:8])
	args := patience()
	args["apid"] = []string{"--client-logs", fmt.Sprint(perReplica)}
	r := rig.StartFor(t, rig.Config{
		Config: cluster.Config{CertificateLifetime: time.Hour, Replicas: 2, Args: args}, Built: built,
		NodeIDs: map[string]string{"w": "node-logs-" + tag},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := wait.Until(ctx, r.Ready); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(ctx, rig.Processes("talks", 1, `printf '\033[2Jhello\302\23331m\007\n'; `+rig.Sleep)); err != nil {
		t.Fatal(err)
	}
	if err := wait.Until(ctx, func(ctx context.Context) error { _, err := r.Running(ctx, "talks", 1); return err }); err != nil {
		t.Fatal(err)
	}
	replicas := r.Replicas("apid")
	tokens := map[string]string{}
	for _, name := range []string{"vera", "ada"} {
		token, err := r.Client(replicas[0]).CreateToken(ctx, &musterv1.CreateTokenRequest{Name: name, Role: "viewer"})
		if err != nil {
			t.Fatal(err)
		}
		tokens[name] = token.Secret
	}
	t.Run("a viewer who follows as much as possible", func(t *testing.T) { greedyReader(t, r, tokens, perReplica) })
	t.Run("a task that writes to the terminal", func(t *testing.T) { escapes(t, r, tokens["ada"]) })
	if err := r.RemoveAll(ctx); err != nil {
		t.Fatal(err)
	}
	if err := wait.Until(ctx, r.Empty); err != nil {
		t.Fatal(err)
	}
}

// greedyReader has a viewer open more log streams than one worker serves, at two
// replicas of apid. Another viewer can still read.
func greedyReader(t *testing.T, r *rig.Rig, tokens map[string]string, perReplica int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := func(client musterv1.ControlServiceClient, name string) (grpc.ServerStreamingClient[musterv1.ServiceLogsResponse], error) {
		s, err := client.ServiceLogs(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tokens[name]),
			&musterv1.ServiceLogsRequest{Service: "talks", Options: &musterv1.LogOptions{Follow: true}})
		if err == nil {
			_, err = s.Header()
		}
		return s, err
	}
	read := func(s grpc.ServerStreamingClient[musterv1.ServiceLogsResponse]) {
		t.Helper()
		if m, err := s.Recv(); err != nil || string(m.Message.Data) != evil {
			t.Errorf("a reader got %v, %v", m, err)
		}
	}
	for _, name := range r.Replicas("apid") {
		conn, err := daemon.Dialer(credentials.NewTLS(r.TLS(authv1.Role_APID)))(r.Address(name))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		client := musterv1.NewControlServiceClient(conn)
		for range perReplica {
			s, err := follow(client, "vera")
			if err != nil {
				t.Fatal(err)
			}
			// It is served, or told to wait for others.
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		s, err := follow(client, "vera")
		if err == nil {
			_, err = s.Recv()
		}
		if got := status.Convert(err); got.Code() != codes.ResourceExhausted || !strings.Contains(got.Message(), fmt.Sprintf("viewer vera has %d log streams open", perReplica)) || !strings.Contains(got.Message(), "--client-logs") {
			t.Errorf("one stream too many: %v", err)
		}
		for range 3 {
			s, err := follow(client, "ada")
			if err != nil {
				t.Fatal(err)
			}
			read(s)
		}
	}
}

// escapes reads a line that a terminal would act on, as text.
func escapes(t *testing.T, r *rig.Rig, token string) {
	get := func(query string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.RESTAddress(r.Replicas("apid")[0])+"/v1/services/talks/logs"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "text/plain")
		req.Header.Set("Authorization", "Bearer "+token)
		transport := &http.Transport{TLSClientConfig: r.TLS(authv1.Role_APID)}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v %s", resp.Status, err, b)
		}
		return string(b)
	}
	if got := get(""); strings.ContainsAny(got, "\x1b\x07\u009b") || !strings.HasPrefix(got, "talks.1.") || !strings.HasSuffix(got, " | [2Jhello31m\n") {
		t.Errorf("text is %q", got)
	}
	if got := get("?raw=true"); got != evil+"\n" {
		t.Errorf("raw text is %q", got)
	}
}
