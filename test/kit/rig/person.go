package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/mtls"
)

const (
	// enrolTimeout bounds the wait until apid issues certificates.
	enrolTimeout = 2 * time.Minute
	// issueTimeout bounds one attempt to get a certificate.
	issueTimeout = 10 * time.Second
)

// person is the rig as a client of a cluster with access control: an operator. Its
// certificate has the same short lifetime as those of daemons, and is renewed in the same
// way.
type person struct {
	keeper *ca.Renewer
	stop   context.CancelFunc
	ended  chan error
}

// enrol gives the rig a certificate, which is renewed until leave is called.
func (r *Rig) enrol(ctx context.Context) (*person, error) {
	token, err := r.adminToken()
	if err != nil {
		return nil, err
	}
	authorities, err := os.ReadFile(r.Secret("ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	issuer := &administrator{authorities: authorities, token: token}
	for _, name := range r.Replicas("apid") {
		issuer.addresses = append(issuer.addresses, r.Address(name))
	}
	enrolling, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	keeper, err := ca.Join(enrolling, ca.RenewerConfig{
		Issuer: issuer, Identity: auth.Identity{Role: authv1.Role_OPERATOR, Name: "rig"}, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("become a person: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &person{keeper: keeper, stop: stop, ended: make(chan error, 1)}
	go func() { p.ended <- keeper.Run(ctx) }()
	return p, nil
}

// leave stops renewing the certificate.
func (p *person) leave() error {
	p.stop()
	return <-p.ended
}

func (r *Rig) adminToken() (string, error) {
	token, err := os.ReadFile(r.Secret("admin.token"))
	if err != nil {
		return "", fmt.Errorf("read administrator's token: %w", err)
	}
	return strings.TrimSpace(string(token)), nil
}

// bearer sends the administrator's token with each call of a long-lived connection, because
// a person's certificate expires soon.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// TLS returns the configuration of connections from the rig to daemons of some roles, in a
// cluster with access control.
func (r *Rig) TLS(kinds ...authv1.Role) *tls.Config { return r.person.keeper.Source().Client(kinds...) }

// administrator issues certificates for persons. It authenticates with a token.
type administrator struct {
	addresses   []string
	authorities []byte
	token       string
}

// Issue implements ca.Issuer.
func (a *administrator) Issue(ctx context.Context, request []byte, _ *mtls.Source) (*ca.Issued, error) {
	config, err := mtls.User(nil, a.authorities, "")
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, address := range a.addresses {
		issued, err := a.issueAt(ctx, address, config, request)
		if err == nil {
			return issued, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (a *administrator) issueAt(ctx context.Context, address string, config *tls.Config, request []byte) (*ca.Issued, error) {
	conn, err := daemon.Dialer(credentials.NewTLS(config))(address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token), issueTimeout)
	defer cancel()
	req := &musterv1.CreateCertificateRequest{Request: string(request), Name: "rig", Role: "operator"}
	resp, err := musterv1.NewControlServiceClient(conn).CreateCertificate(ctx, req, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("issue a person's certificate: %w", err)
	}
	return &ca.Issued{Certificate: []byte(resp.Certificate), Authorities: []byte(resp.Authorities)}, nil
}
