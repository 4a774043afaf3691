package security_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func list(ctx context.Context, c musterv1.ControlServiceClient) error {
	_, err := c.ListServices(ctx, &musterv1.ListServicesRequest{})
	return err
}

// session says hello as a node and returns how that goes.
func (c *closed) session(who *tls.Certificate, node string) error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
	defer cancel()
	stream, err := dispatcherv1.NewDispatcherServiceClient(c.dial(c.dispatch, who)).Session(ctx)
	if err != nil {
		return err
	}
	// What became of it is what Recv says.
	_ = stream.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Hello{Hello: &dispatcherv1.Hello{
		NodeId: node, InstanceId: "i", Description: &musterv1.NodeDescription{Hostname: node},
	}}})
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.GetWelcome() != nil {
			return nil
		}
	}
}

// forged signs for an identity with an authority of the attacker's own.
func forged(t *testing.T, uri string) *tls.Certificate {
	t.Helper()
	key, _ := request(t)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "forged"}, URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pair(t, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestAttacks(t *testing.T) {
	// So few that a slow machine, too, makes more.
	c := start(t, "--client-rate", "10", "--client-burst", "200", "--unauthenticated-rate", "10", "--unauthenticated-burst", "200")
	worker := strings.TrimSpace(string(c.file("worker.token")))
	admin := musterv1.NewControlServiceClient(c.dial(c.api, nil))
	node1, err := c.join("node1", worker)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.session(node1, "node1"); err != nil {
		t.Fatalf("a worker is not admitted: %v", err)
	}
	viewer, err := admin.CreateToken(c.with(c.admin), &musterv1.CreateTokenRequest{Name: "vera", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	domain := node1.Leaf.URIs[0].Host
	metrics := c.user(authv1.Role_VIEWER, 0)
	before := c.refused(metrics)

	t.Run("in the clear", func(t *testing.T) {
		for _, address := range []string{c.api, c.dispatch} {
			expect(t, address, list(c.with(""), musterv1.NewControlServiceClient(c.connect(address, insecure.NewCredentials()))), codes.Unavailable)
		}
		c.logged("apid", `"connection is refused"`, `"peer":"127.0.0.1:`)
		c.logged("dispatcherd", `"connection is refused"`)
	})
	t.Run("without a certificate", func(t *testing.T) {
		expect(t, "dispatcherd", c.session(nil, "node1"), codes.Unavailable)
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		expect(t, "apid", list(ctx, admin), codes.Unauthenticated)
		c.logged("apid", `"call is refused"`, "ListServices", "unauthenticated")
	})
	t.Run("with a certificate of another authority", func(t *testing.T) {
		expect(t, "dispatcherd", c.session(forged(t, "spiffe://"+domain+"/worker/node1"), "node1"), codes.Unavailable)
		stranger := forged(t, "spiffe://"+domain+"/user/admin/ada")
		expect(t, "apid", list(c.with(""), musterv1.NewControlServiceClient(c.dial(c.api, stranger))), codes.Unavailable)
	})
	t.Run("with a certificate that has ended", func(t *testing.T) {
		short := c.user(authv1.Role_ADMIN, 1)
		c.eventually("the certificate has ended", func() bool { return time.Now().After(short.Leaf.NotAfter) })
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		expect(t, "apid", list(ctx, musterv1.NewControlServiceClient(c.dial(c.api, short))), codes.Unavailable)
	})
	t.Run("a worker calls what managers and people do", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		expect(t, "ListServices", list(ctx, musterv1.NewControlServiceClient(c.dial(c.api, node1))), codes.PermissionDenied)
		c.logged("apid", `"call is refused"`, "ListServices", `"identity":"worker node1"`, `"serial":"`+node1.Leaf.SerialNumber.Text(16)+`"`)
		logs, err := dispatcherv1.NewLogBrokerServiceClient(c.dial(c.dispatch, node1)).SubscribeLogs(ctx, &dispatcherv1.SubscribeLogsRequest{NodeId: "node1"})
		if err == nil {
			_, err = logs.Recv()
		}
		expect(t, "SubscribeLogs", err, codes.PermissionDenied)
		_, err = musterv1.NewControlServiceClient(c.dial(c.api, node1)).CreateCertificate(ctx, &musterv1.CreateCertificateRequest{Name: "x", Role: "admin"})
		expect(t, "CreateCertificate", err, codes.PermissionDenied)
	})
	t.Run("a worker asks for another node's tasks", func(t *testing.T) {
		expect(t, "Session", c.session(node1, "node2"), codes.PermissionDenied)
		c.logged("dispatcherd", `"call is refused"`, "Session", `"identity":"worker node1"`, "node2")
	})
	t.Run("a viewer writes", func(t *testing.T) {
		if err := list(c.with(viewer.Secret), admin); err != nil {
			t.Errorf("a viewer may not read: %v", err)
		}
		_, err := admin.RemoveNode(c.with(viewer.Secret), &musterv1.RemoveNodeRequest{Node: "node1", Force: true})
		expect(t, "RemoveNode", err, codes.PermissionDenied)
		_, err = admin.CreateToken(c.with(viewer.Secret), &musterv1.CreateTokenRequest{Name: "x", Role: "admin"})
		expect(t, "CreateToken", err, codes.PermissionDenied)
		if code := c.http(t, http.MethodGet, "/v1/nodes", viewer.Secret); code != http.StatusOK {
			t.Errorf("a viewer reads with status %d", code)
		}
		for token, want := range map[string]int{viewer.Secret: http.StatusForbidden, "": http.StatusUnauthorized, viewer.Secret + "x": http.StatusUnauthorized} {
			if code := c.http(t, http.MethodDelete, "/v1/nodes/node1", token); code != want {
				t.Errorf("a write of %q has status %d, want %d", token, code, want)
			}
		}
		c.logged("apid", `"call is refused"`, "RemoveNode", `"identity":"viewer vera"`)
	})
	t.Run("certificates of people", func(t *testing.T) { certificates(t, c) })
	t.Run("a token that was removed", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		watch, err := admin.Watch(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+viewer.Secret), &musterv1.WatchRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		events := c.request(t, http.MethodGet, "/v1/watch", viewer.Secret)
		if events.StatusCode != http.StatusOK {
			t.Fatalf("REST watches with status %d", events.StatusCode)
		}
		defer func() {
			// A watch that is open does not outlive it for long.
			said, err := io.ReadAll(events.Body)
			_ = events.Body.Close()
			if err != nil || !strings.Contains(string(said), `{"error":{"code":16`) {
				t.Errorf("a watch over REST ended with %q, %v", said, err)
			}
		}()
		defer func() {
			for err == nil {
				_, err = watch.Recv()
			}
			expect(t, "Watch", err, codes.Unauthenticated)
			c.logged("apid", `"call is refused"`, "Watch", `"identity":"viewer vera"`)
		}()
		if _, err := admin.RemoveToken(c.with(c.admin), &musterv1.RemoveTokenRequest{Token: viewer.Token.Id}); err != nil {
			t.Fatal(err)
		}
		expect(t, "ListServices", list(c.with(viewer.Secret), admin), codes.Unauthenticated)
	})
	t.Run("a join with the id of a node that is there", func(t *testing.T) {
		_, err := c.join("node1", worker)
		expect(t, "Join", err, codes.AlreadyExists)
		c.logged("apid", `"call is refused"`, "AuthorityService/Join", "node1")
	})
	t.Run("a worker's join token makes no manager", func(t *testing.T) {
		_, err := c.join("apid", worker)
		expect(t, "Join", err, codes.PermissionDenied)
	})
	t.Run("a certificate that others have replaced", func(t *testing.T) {
		renew := func(with *tls.Certificate) (*tls.Certificate, error) {
			key, r := request(t)
			ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
			defer cancel()
			resp, err := c.authority(with).Renew(ctx, &cav1.RenewRequest{Request: r})
			if err != nil {
				return nil, err
			}
			return pair(t, key, resp.Certificate), nil
		}
		first, err := c.join("node5", worker)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := renew(first); err != nil {
			t.Fatal(err)
		}
		// The answer was lost, for all that it knows.
		second, err := renew(first)
		if err != nil {
			t.Fatal("again with the same:", err)
		}
		if _, err := renew(second); err != nil {
			t.Fatal(err)
		}
		_, err = renew(first)
		expect(t, "Renew", err, codes.PermissionDenied)
	})
	t.Run("a join token that was stolen, and replaced", func(t *testing.T) {
		fresh, err := admin.RotateJoinToken(c.with(c.admin), &musterv1.RotateJoinTokenRequest{Kind: musterv1.RotateJoinTokenRequest_KIND_WORKER})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.join("node3", worker)
		expect(t, "Join", err, codes.PermissionDenied)
		if _, err := c.join("node3", fresh.Token); err != nil {
			t.Errorf("the new token: %v", err)
		}
	})
	t.Run("a node that joined and never connected", func(t *testing.T) {
		if _, err := admin.RemoveNode(c.with(c.admin), &musterv1.RemoveNodeRequest{Node: "node3"}); err != nil {
			t.Fatal(err)
		}
		_, err := admin.RemoveNode(c.with(c.admin), &musterv1.RemoveNodeRequest{Node: "node3"})
		expect(t, "RemoveNode again", err, codes.NotFound)
	})
	t.Run("a node that was removed", func(t *testing.T) {
		if _, err := admin.RemoveNode(c.with(c.admin), &musterv1.RemoveNodeRequest{Node: "node1", Force: true}); err != nil {
			t.Fatal(err)
		}
		_, r := request(t)
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		_, err := c.authority(node1).Renew(ctx, &cav1.RenewRequest{Request: r})
		expect(t, "Renew", err, codes.PermissionDenied)
		c.eventually("the dispatcher refuses it", func() bool { return c.session(node1, "node1") != nil })
		expect(t, "Session", c.session(node1, "node1"), codes.PermissionDenied)
	})
	t.Run("a page that names another host", func(t *testing.T) {
		for host, want := range map[string]int{"evil.example": http.StatusForbidden, "localhost": http.StatusOK} {
			for _, url := range []string{"https://" + c.rest + "/v1/nodes", "https://" + c.ops + "/healthz"} {
				if resp := c.requestFor(t, http.MethodGet, url, host, c.admin); resp.StatusCode != want {
					t.Errorf("%s for host %q: status %d, want %d", url, host, resp.StatusCode, want)
				}
			}
		}
	})
	t.Run("an administrator's token for operations", func(t *testing.T) {
		for _, path := range []string{"/metrics", "/debug/pprof/cmdline"} {
			resp := c.requestFor(t, http.MethodGet, "https://"+c.ops+path, "", c.admin)
			if said, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusUnauthorized || !bytes.Contains(said, []byte("client certificate")) {
				t.Errorf("%s: status %d, %q, %v", path, resp.StatusCode, said, err)
			}
		}
	})
	t.Run("a client that calls too often", func(t *testing.T) {
		vera, err := admin.CreateToken(c.with(c.admin), &musterv1.CreateTokenRequest{Name: "vera", Role: "viewer"})
		if err != nil {
			t.Fatal(err)
		}
		err = c.flood(func(ctx context.Context) error {
			return list(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+vera.Secret), admin)
		})
		expect(t, "ListServices", err, codes.ResourceExhausted)
		if !strings.Contains(err.Error(), "--client-rate") || len(status.Convert(err).Details()) != 1 {
			t.Errorf("the refusal says %v, %v", err, status.Convert(err).Details())
		}
		c.logged("apid", `"client exceeds a limit"`, `"client":"viewer vera"`)
		// Others are served.
		if err := list(c.with(c.admin), admin); err != nil {
			t.Error(err)
		}
	})
	t.Run("a stranger that calls too often", func(t *testing.T) {
		unknown := c.authority(nil)
		// Wrong tokens are called wrong however many there are; the log is spared.
		c.eventually("that is told", func() bool {
			for range 300 {
				expect(t, "a wrong token", list(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer muster_aaaaaaaaaaaa_b"), admin), codes.Unauthenticated)
			}
			return bytes.Contains(c.file("apid.log"), []byte(`"limit":"refused"`))
		})
		expect(t, "joins", c.flood(func(ctx context.Context) error {
			_, err := unknown.GetAuthority(ctx, &cav1.GetAuthorityRequest{})
			return err
		}), codes.ResourceExhausted)
		if err := list(c.with(c.admin), admin); err != nil {
			t.Error("a right token of the same host:", err)
		}
	})
	c.eventually(fmt.Sprintf("14 refusals are counted and more, after %d", before), func() bool { return c.refused(metrics) >= before+14 })
}

// flood makes calls, many at a time, until one is refused for their number, and
// returns what that was told.
func (c *closed) flood(call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	refusals := make(chan error, 16)
	var wg sync.WaitGroup
	for range cap(refusals) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := call(ctx); status.Code(err) == codes.ResourceExhausted {
					refusals <- err
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	select {
	case err := <-refusals:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// http sends a request to REST and returns the status.
func (c *closed) http(t *testing.T, method, path, token string) int {
	t.Helper()
	resp := c.request(t, method, path, token)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// request sends a request to REST.
func (c *closed) request(t *testing.T, method, path, token string) *http.Response {
	t.Helper()
	return c.requestFor(t, method, "https://"+c.rest+path, "", token)
}

// requestFor sends a request to a URL, which says that it is for some host.
func (c *closed) requestFor(t *testing.T, method, url, host, token string) *http.Response {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.ca)
	// Here the host name counts, as for a browser.
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// refused reads from apid's metrics how many calls and connections it refused.
func (c *closed) refused(who *tls.Certificate) int {
	c.t.Helper()
	return c.sum(who, regexp.MustCompile(`(?m)^muster_auth_[a-z_]*refused_total(?:\{.*\})? (\d+)$`))
}

// metrics returns apid's metrics.
func (c *closed) metrics(who *tls.Certificate) []byte {
	c.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{*who}}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + c.ops + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("metrics: status %d, %v", resp.StatusCode, err)
	}
	return text
}

// sum adds up what a pattern finds in apid's metrics.
func (c *closed) sum(who *tls.Certificate, pattern *regexp.Regexp) int {
	c.t.Helper()
	sum := 0
	for _, m := range pattern.FindAllSubmatch(c.metrics(who), -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			c.t.Fatalf("metrics: %s", m[0])
		}
		sum += n
	}
	return sum
}
