// Package engine hands requests on to a Docker Engine.
package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/dockerapi/server"
)

const (
	// versionLifetime is for how long the Engine's version is believed: it may be replaced
	// while this process runs.
	versionLifetime = 30 * time.Second
	dialTimeout     = 5 * time.Second
)

// Engine is a Docker Engine on this machine.
type Engine struct {
	proxy  *httputil.ReverseProxy
	client *http.Client
	log    *zap.Logger

	mu      sync.Mutex
	version string
	asked   time.Time
}

// New returns the Engine at an address of the form unix:///path or tcp://host:port. It does
// not connect yet.
func New(address string, log *zap.Logger) (*Engine, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("address of the Engine: %w", err)
	}
	network, at := u.Scheme, u.Host
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		at = u.Path
	case u.Scheme == "tcp" && u.Port() != "":
	default:
		return nil, fmt.Errorf("invalid address of the Engine %q: want unix:///path or tcp://host:port", address)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, at)
		},
		// Answers must pass as they are.
		DisableCompression: true,
		MaxIdleConns:       16,
		IdleConnTimeout:    time.Minute,
	}
	e := &Engine{client: &http.Client{Transport: transport}, log: log}
	e.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", "engine", "engine"
			// A route takes the version off the path. The answer must be that of the
			// version that the client speaks.
			p.Out.URL.Path = server.Versioned(p.In.Context(), p.Out.URL.Path)
			if p.Out.URL.RawPath != "" {
				p.Out.URL.RawPath = server.Versioned(p.In.Context(), p.Out.URL.RawPath)
			}
		},
		Transport: transport,
		// Streams are passed on as they come; attach and exec by an upgrade.
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			// The version that this server offers stands.
			r.Header.Del("Api-Version")
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Debug("Engine does not answer", zap.String("path", r.URL.Path), zap.Error(err))
			server.WriteError(w, http.StatusBadGateway, "the Engine behind dockerapid (--engine) does not answer: "+err.Error())
		},
	}
	return e, nil
}

// ServeHTTP hands a request on.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) { e.proxy.ServeHTTP(w, r) }

// Get asks the Engine and decodes the answer.
func (e *Engine) Get(ctx context.Context, path string, into any) error {
	return e.ask(ctx, http.MethodGet, path, into)
}

// Post is the same for a request that changes something.
func (e *Engine) Post(ctx context.Context, path string, into any) error {
	return e.ask(ctx, http.MethodPost, path, into)
}

func (e *Engine) ask(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return server.Errorf(http.StatusBadGateway, "the Engine behind dockerapid (--engine) does not answer: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return server.Errorf(resp.StatusCode, "the Engine behind dockerapid (--engine) answers %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Version returns the newest version of the API that the Engine speaks; "" if it does not
// say.
func (e *Engine) Version(ctx context.Context) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.asked) < versionLifetime {
		return e.version
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://engine/_ping", nil)
	if err != nil {
		return e.version
	}
	e.asked = time.Now()
	resp, err := e.client.Do(req)
	if err != nil {
		e.log.Warn("Engine does not answer", zap.Error(err))
		return e.version
	}
	_ = resp.Body.Close()
	e.version = resp.Header.Get("Api-Version")
	return e.version
}
