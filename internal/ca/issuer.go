package ca

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	"github.com/musterhq/muster/internal/mtls"
)

// Bounds of one attempt at one apid. Within them an attempt takes a quarter of the
// certificate's remaining lifetime, so that an apid that hangs leaves time to ask another.
const (
	longestCall  = 15 * time.Second
	shortestCall = 2 * time.Second
)

// errFinal marks errors that another attempt cannot mend.
var errFinal = errors.New("cannot join")

// Local issues certificates to an apid, which has the authority itself.
type Local struct{ Authority *Authority }

// Issue implements Issuer.
func (l Local) Issue(ctx context.Context, request []byte, _ *mtls.Source) (*Issued, error) {
	r, err := ParseRequest(request)
	if err != nil {
		return nil, err
	}
	return l.Authority.issueToSelf(ctx, r)
}

// Check implements Checker.
func (l Local) Check(ctx context.Context, _ *mtls.Source) ([]byte, time.Duration, error) {
	pem, err := l.Authority.Certificates(ctx)
	return pem, l.Authority.CheckInterval(), err
}

// Remote asks apid for certificates: with a join token at first, and with its certificate
// afterwards.
type Remote struct {
	// Addresses are the addresses of apid's gRPC server.
	Addresses []string
	// Token returns the join token, or "" if there is none. It is called for each attempt,
	// because the token's file may change.
	Token func() (string, error)
	// Name is the id of a worker's node, or the name of a manager daemon.
	Name string
	// Dial connects to an address, without verifying its server.
	Dial func(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error)
}

// Issue implements Issuer.
func (r *Remote) Issue(ctx context.Context, request []byte, current *mtls.Source) (*Issued, error) {
	// A holder whose certificate expired while it asked joins with the next request. That
	// request has the key that the authority knows, and this one has another.
	ended := current == nil || !time.Now().Before(current.Get().Certificate.Leaf.NotAfter)
	var errs []error
	for _, address := range r.Addresses {
		issued, err := r.issueAt(ctx, address, request, current, ended)
		if err == nil {
			return issued, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		if errors.Is(err, errFinal) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// patience returns how long one call may take. No renewal may be late because of it.
func patience(current *mtls.Source) time.Duration {
	if current != nil {
		if left := time.Until(current.Get().Certificate.Leaf.NotAfter); left > 0 {
			return min(longestCall, max(left/4, shortestCall))
		}
	}
	return longestCall
}

func (r *Remote) issueAt(ctx context.Context, address string, request []byte, current *mtls.Source, ended bool) (*Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, patience(current))
	defer cancel()
	token, unread := r.Token()
	if current != nil {
		// The token need not exist for that.
		issued, err := r.renew(ctx, address, request, current)
		if err == nil || token == "" || !ended {
			return issued, err
		}
	}
	if unread != nil {
		return nil, unread
	}
	if token == "" {
		return nil, fmt.Errorf("%w: there is no certificate, and no join token (--join-token, --join-token-file)", errFinal)
	}
	return r.join(ctx, address, token, request)
}

func (r *Remote) renew(ctx context.Context, address string, request []byte, current *mtls.Source) (*Issued, error) {
	conn, err := r.Dial(address, credentials.NewTLS(current.Client(authv1.Role_APID)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := cav1.NewAuthorityServiceClient(conn).Renew(ctx, &cav1.RenewRequest{Request: request})
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return &Issued{Certificate: resp.Certificate, Authorities: resp.Authorities}, nil
}

// Check implements Checker.
func (r *Remote) Check(ctx context.Context, current *mtls.Source) ([]byte, time.Duration, error) {
	var errs []error
	for _, address := range r.Addresses {
		authorities, again, err := r.checkAt(ctx, address, current)
		if err == nil {
			return authorities, again, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return nil, 0, errors.Join(errs...)
}

func (r *Remote) checkAt(ctx context.Context, address string, current *mtls.Source) ([]byte, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience(current))
	defer cancel()
	conn, err := r.Dial(address, credentials.NewTLS(current.Client(authv1.Role_APID)))
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := cav1.NewAuthorityServiceClient(conn).Check(ctx, &cav1.CheckRequest{})
	if err != nil {
		return nil, 0, fmt.Errorf("ask what the authority is: %w", err)
	}
	return resp.Authorities, time.Duration(resp.AgainSeconds) * time.Second, nil
}

// Knows reports whether the join token, if there is one, names one of these authorities.
func (r *Remote) Knows(authorities []byte) bool {
	token, err := r.Token()
	if err != nil {
		return true
	}
	digest, _, err := parseJoinToken(token)
	return err != nil || vouched(authorities, digest) != nil
}

// join asks the server that answers for the authority and compares that with the token.
// Then it shows the token to an apid that this authority vouches for.
func (r *Remote) join(ctx context.Context, address, token string, request []byte) (*Issued, error) {
	digest, _, err := parseJoinToken(token)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFinal, err)
	}
	said, err := r.fetch(ctx, address)
	if err != nil {
		return nil, err
	}
	authority := vouched(said, digest)
	if authority == nil {
		return nil, errors.New("what answers does not have the authority that the join token names")
	}
	config, err := mtls.User(nil, authority, "")
	if err != nil {
		return nil, err
	}
	conn, err := r.Dial(address, credentials.NewTLS(config))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := cav1.NewAuthorityServiceClient(conn).Join(ctx, &cav1.JoinRequest{Token: token, Request: request, Name: r.Name})
	switch status.Code(err) {
	case codes.OK:
		return &Issued{Certificate: resp.Certificate, Authorities: resp.Authorities}, nil
	case codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists:
		return nil, fmt.Errorf("%w: %w", errFinal, err)
	default:
		return nil, fmt.Errorf("join: %w", err)
	}
}

// fetch asks the server that answers for the authority.
func (r *Remote) fetch(ctx context.Context, address string) ([]byte, error) {
	// The answer is compared with the token, and the server learns nothing.
	conn, err := r.Dial(address, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := cav1.NewAuthorityServiceClient(conn).GetAuthority(ctx, &cav1.GetAuthorityRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the authority: %w", err)
	}
	return resp.Authorities, nil
}
