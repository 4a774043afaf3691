package apid

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (c *control) CreateService(ctx context.Context, req *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := c.validate.Service(req.Spec, c.executors()); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	id, err := c.createService(ctx, req.Spec, time.Now())
	if err != nil {
		return nil, c.fail("create service", err)
	}
	s, err := c.serviceMessage(id)
	return &musterv1.CreateServiceResponse{Service: s}, err
}

func (c *control) GetService(ctx context.Context, req *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	s, err := c.serviceMessage(req.Service)
	if err != nil {
		return nil, err
	}
	if req.InsertDefaults {
		s.Spec = withDefaults(s.Spec)
	}
	return &musterv1.GetServiceResponse{Service: s}, nil
}

func (c *control) UpdateService(ctx context.Context, req *musterv1.UpdateServiceRequest) (*musterv1.UpdateServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the service that the new spec was decided on")
	}
	if err := c.validate.Service(req.Spec, c.executors()); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	id, err := c.changeService(ctx, req.Service, func(id string) error {
		return c.updateService(ctx, id, time.Now(), func(s *storedService) error {
			if s.version != req.Version {
				return stale("service", s.record.GetSpec().GetName(), req.Version, s.version)
			}
			return s.replace(req.Spec)
		})
	})
	if err != nil {
		return nil, c.fail("update service", err)
	}
	s, err := c.serviceMessage(id)
	return &musterv1.UpdateServiceResponse{Service: s}, err
}

func (c *control) ScaleService(ctx context.Context, req *musterv1.ScaleServiceRequest) (*musterv1.ScaleServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := validate.Replicas("replicas", req.Replicas); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	id, err := c.changeService(ctx, req.Service, func(id string) error {
		return c.updateService(ctx, id, time.Now(), func(s *storedService) error { return s.scale(req.Replicas) })
	})
	if err != nil {
		return nil, c.fail("scale service", err)
	}
	s, err := c.serviceMessage(id)
	return &musterv1.ScaleServiceResponse{Service: s}, err
}

func (c *control) RollbackService(ctx context.Context, req *musterv1.RollbackServiceRequest) (*musterv1.RollbackServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	id, err := c.changeService(ctx, req.Service, func(id string) error {
		return c.updateService(ctx, id, time.Now(), func(s *storedService) error {
			if req.Version != 0 && s.version != req.Version {
				return stale("service", s.record.GetSpec().GetName(), req.Version, s.version)
			}
			return s.rollBack()
		})
	})
	if err != nil {
		return nil, c.fail("roll back service", err)
	}
	s, err := c.serviceMessage(id)
	return &musterv1.RollbackServiceResponse{Service: s}, err
}

func (c *control) RemoveService(ctx context.Context, req *musterv1.RemoveServiceRequest) (*musterv1.RemoveServiceResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	if _, err := c.changeService(ctx, req.Service, func(id string) error { return c.removeService(ctx, id) }); err != nil {
		return nil, c.fail("remove service", err)
	}
	return &musterv1.RemoveServiceResponse{}, nil
}

func (c *control) ListServices(ctx context.Context, req *musterv1.ListServicesRequest) (*musterv1.ListServicesResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	p, err := newPage(req, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	labels, err := parseLabels(req.Labels)
	if err != nil {
		return nil, err
	}
	names := foldAll(req.Names)
	prefixes := foldAll(req.NamePrefixes)
	resp := &musterv1.ListServicesResponse{}
	c.view.Read(func(r *objects.Reader) {
		r.Services(p.from, func(s *objects.Service) bool {
			spec := s.Record.GetSpec()
			name := fold(spec.GetName())
			if !oneOf(names, name) || !onePrefix(prefixes, name) || !onePrefix(req.IdPrefixes, s.ID) || !labels.match(spec.GetLabels()) ||
				!oneOf(req.Modes, serviceMode(spec)) {
				return true
			}
			if !p.take(s.ID) {
				return false
			}
			resp.Services = append(resp.Services, r.ServiceMessage(s))
			return true
		})
	})
	resp.NextPageToken = p.next()
	return resp, nil
}

// changeService changes the service that a reference means, and returns its id.
// This replica may lag behind another that has just told a user of a service, or
// of another one by the same name; so what it does not find it looks for in the
// store, before it refuses the change.
func (c *control) changeService(ctx context.Context, ref string, change func(id string) error) (string, error) {
	former := ""
	for {
		id, err := c.serviceID(ref)
		if status.Code(err) == codes.NotFound {
			if err = c.update(ctx, func(tx *store.Tx) error { return c.exists(tx, ref) }); err == nil {
				id, err = c.serviceID(ref)
			}
		}
		if err != nil {
			return "", err
		}
		if err = change(id); status.Code(err) != codes.NotFound || id == former {
			return id, err
		}
		former = id
	}
}

// exists returns an error unless there is a service of this id or name.
func (d *Daemon) exists(tx *store.Tx, ref string) error {
	if _, ok := d.tables.Services.Get(tx, ref); ok {
		return nil
	}
	if _, ok := d.tables.Names.Get(tx, state.NameKey(serviceKind, ref)); ok {
		return nil
	}
	return notFound(serviceKind, ref)
}

// serviceID resolves a reference to a service.
func (c *control) serviceID(ref string) (string, error) {
	return resolve(c, serviceKind, ref, (*objects.Reader).FindService, func(_ *objects.Reader, s *objects.Service) string { return s.ID })
}

func (c *control) serviceMessage(ref string) (*musterv1.Service, error) {
	return resolve(c, serviceKind, ref, (*objects.Reader).FindService, (*objects.Reader).ServiceMessage)
}
