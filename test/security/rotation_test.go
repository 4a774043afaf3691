package security_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/mtls"
	"github.com/musterhq/muster/test/kit/rig"
)

// TestRootRotation replaces the root under a cluster at work, and kills the apid
// that was asked to. A client that knows the old root alone must not notice, and
// the work must continue.
func TestRootRotation(t *testing.T) {
	c := start(t, "--authority-check-interval", "1s", "--root-rotation-least", "2s", "--sweep-interval", "1s")
	free := freeAddresses(t, 10)
	second := c.second
	c.daemon("apid-2", append(c.apid, "--listen", second, "--rest-listen", free[1], "--ops-listen", free[2])...)
	for i, name := range []string{"orchestratord", "allocatord", "schedulerd"} {
		c.manager(name, free[3+2*i], free[4+2*i])
	}
	c.daemon("workerd", "--join", c.api+","+second, "--join-token-file", filepath.Join(c.dir, "worker.token"), "--dispatcher", c.dispatch,
		"--node-id", "n1", "--data-dir", filepath.Join(c.dir, "worker"), "--plugin-dir", filepath.Join(built, "plugins"), "--ops-listen", free[9])
	config, err := mtls.User(nil, c.ca, "")
	if err != nil {
		t.Fatal(err)
	}
	old := credentials.NewTLS(config)
	client := musterv1.NewControlServiceClient(c.connect(second, old))
	c.eventually("the second apid serves, and the node is ready", func() bool {
		n, err := client.GetNode(c.with(c.admin), &musterv1.GetNodeRequest{Node: "n1"})
		return err == nil && n.Node.Status.State == musterv1.NodeStatus_READY
	})
	web, err := client.CreateService(c.with(c.admin), &musterv1.CreateServiceRequest{Spec: rig.Null("web", 3)})
	if err != nil {
		t.Fatal(err)
	}
	running := func(n int) {
		t.Helper()
		c.eventually(fmt.Sprintf("%d tasks run", n), func() bool {
			l, err := client.ListTasks(c.with(c.admin), &musterv1.ListTasksRequest{States: []musterv1.TaskState{musterv1.TaskState_RUNNING}})
			return err == nil && len(l.Tasks) == n
		})
	}
	running(3)
	person := c.user(authv1.Role_VIEWER, 0)
	watching, unwatch := context.WithTimeout(t.Context(), 10*time.Minute)
	defer unwatch()
	watch, err := musterv1.NewControlServiceClient(c.dial(second, person)).Watch(watching, &musterv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}

	// A client that knows only the old root calls on a new connection each time.
	ctx, cancel := context.WithCancel(t.Context())
	called := make(chan error, 1)
	go func() { called <- c.keepCalling(ctx, second, old) }()
	defer func() {
		cancel()
		if err := <-called; err != nil {
			t.Error(err)
		}
	}()

	if _, err := musterv1.NewControlServiceClient(c.dial(c.api, nil)).RotateAuthority(c.with(c.admin), &musterv1.RotateAuthorityRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := c.first.Kill(); err != nil {
		t.Fatal(err)
	}
	var now *musterv1.Authority
	c.eventually("the old root is dropped", func() bool {
		a, err := client.GetAuthority(c.with(c.admin), &musterv1.GetAuthorityRequest{})
		now = a.GetAuthority()
		return err == nil && now.Rotation.GetEndedAt() != nil
	})
	if n := strings.Count(now.Certificates, "BEGIN CERTIFICATE"); n != 1 || now.Certificates == string(c.ca) {
		t.Errorf("%d roots are trusted: %s", n, now.Certificates)
	}
	if _, err := client.ScaleService(c.with(c.admin), &musterv1.ScaleServiceRequest{Service: web.Service.Id, Replicas: 5}); err != nil {
		t.Fatal(err)
	}
	running(5)
	c.eventually("the node is ready, on a connection of its own new certificate", func() bool {
		n, err := client.GetNode(c.with(c.admin), &musterv1.GetNodeRequest{Node: "n1"})
		return err == nil && n.Node.Status.State == musterv1.NodeStatus_READY
	})
	c.logged("workerd", "certificate is renewed")
	c.eventually("a certificate of the old root is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		err := list(ctx, musterv1.NewControlServiceClient(c.dial(second, person)))
		return err != nil
	})
	// What was opened with it does not stay open; those who have renewed come back.
	for err == nil {
		_, err = watch.Recv()
	}
	expect(t, "a stream of a certificate of the old root", err, codes.Unavailable)
	// Who knows the new root alone is served, and who joins has a new token.
	if config, err = mtls.User(nil, []byte(now.Certificates), ""); err != nil {
		t.Fatal(err)
	}
	fresh := musterv1.NewControlServiceClient(c.connect(second, credentials.NewTLS(config)))
	tokens, err := fresh.GetJoinTokens(c.with(c.admin), &musterv1.GetJoinTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if was := strings.TrimSpace(string(c.file("worker.token"))); tokens.Worker == was {
		t.Error("the join token names the old root")
	} else if last(was) == last(tokens.Worker) {
		t.Error("the secret of the join token is the same; the holder of the old root's key knows it")
	}
	_, err = fresh.RotateAuthority(c.with(c.admin), &musterv1.RotateAuthorityRequest{Finish: true})
	expect(t, "finish what has ended", err, codes.FailedPrecondition)
}

// keepCalling calls until ctx ends, and returns the first error.
func (c *closed) keepCalling(ctx context.Context, address string, creds credentials.TransportCredentials) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.callOnce(ctx, address, creds); err != nil && ctx.Err() == nil {
			return fmt.Errorf("call %d during the rotation: %w", n, err)
		}
	}
}

func (c *closed) callOnce(ctx context.Context, address string, creds credentials.TransportCredentials) error {
	conn, err := daemon.Dialer(creds)(address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.admin), callTimeout)
	defer cancel()
	return list(ctx, musterv1.NewControlServiceClient(patient{conn}))
}

// last is the secret part of a join token.
func last(token string) string { return token[strings.LastIndexByte(token, '-')+1:] }
