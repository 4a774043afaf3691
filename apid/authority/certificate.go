package authority

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
)

const (
	// personLifetime is that of people's certificates of which nothing is said.
	personLifetime = 24 * time.Hour
	// maxPersonLifetime is the most: they cannot be taken back.
	maxPersonLifetime = 30 * 24 * time.Hour
)

func (c *Control) CreateCertificate(ctx context.Context, req *musterv1.CreateCertificateRequest) (*musterv1.CreateCertificateResponse, error) {
	own, err := c.prepared(ctx)
	if err != nil {
		return nil, err
	}
	var report validate.Report
	if err := auth.ValidName(req.Name); err != nil {
		report.Invalid("name", "%v", err)
	}
	role, err := auth.PersonRole(req.Role)
	if err != nil {
		report.Invalid("role", "%v", err)
	}
	request, err := ca.ParseRequest([]byte(req.Request))
	if err != nil {
		report.Invalid("request", "%v", err)
	}
	most := min(maxPersonLifetime, own.Lifetime())
	lifetime := min(personLifetime, most)
	if l := req.Lifetime; l != nil {
		lifetime = l.AsDuration()
		if !l.IsValid() || lifetime < time.Second || lifetime > most {
			report.Invalid("lifetime", "is not between %v and %v", time.Second, most)
		}
	}
	if err := report.Err(); err != nil {
		return nil, err
	}
	issued, err := own.Issue(ctx, auth.Identity{Role: role, Name: req.Name}, request, lifetime)
	if err != nil {
		return nil, c.backend.Fail("issue certificate", err)
	}
	c.backend.Log.Info("certificate is issued to a person", zap.String("name", req.Name), zap.Stringer("role", role), zap.Duration("lifetime", lifetime), zap.String("by", backend.Caller(ctx)))
	return &musterv1.CreateCertificateResponse{
		Certificate: string(issued.Certificate), Authorities: string(issued.Authorities), ExpiresAt: timestamppb.New(issued.Ends),
	}, nil
}
