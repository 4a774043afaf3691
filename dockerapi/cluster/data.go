package cluster

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) dataRoutes(s *server.Server) {
	s.Handle("GET /secrets", a.listSecrets)
	s.Handle("POST /secrets/create", a.createSecret)
	s.Handle("GET /secrets/{id}", a.getSecret)
	s.Handle("DELETE /secrets/{id}", a.removeSecret)
	s.Handle("POST /secrets/{id}/update", a.updateSecret)
	s.Handle("GET /configs", a.listConfigs)
	s.Handle("POST /configs/create", a.createConfig)
	s.Handle("GET /configs/{id}", a.getConfig)
	s.Handle("DELETE /configs/{id}", a.removeConfig)
	s.Handle("POST /configs/{id}/update", a.updateConfig)
}

func (a *API) listSecrets(w http.ResponseWriter, r *http.Request) error {
	f, err := server.ReadFilters(r, "id", "name", "names", "label")
	if err != nil {
		return err
	}
	secrets, err := a.secrets(r.Context(), &musterv1.ListSecretsRequest{NamePrefixes: f["name"], Names: f["names"], IdPrefixes: f["id"], Labels: f.Labels("label")})
	// A server that does not know secrets has none.
	if err != nil && status.Code(err) != codes.Unimplemented {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, list(secrets, convert.DockerSecret))
}

// secrets lists all that pass a request.
func (a *API) secrets(ctx context.Context, req *musterv1.ListSecretsRequest) ([]*musterv1.Secret, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Secret, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListSecrets(ctx, req)
		return resp.GetSecrets(), resp.GetNextPageToken(), err
	})
}

func (a *API) createSecret(w http.ResponseWriter, r *http.Request) error {
	var in swarm.SecretSpec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	resp, err := call(r.Context(), a.Client.CreateSecret, &musterv1.CreateSecretRequest{Spec: convert.SecretSpec(in)}, "secret", in.Name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusCreated, swarm.SecretCreateResponse{ID: resp.GetSecret().GetId()})
}

func (a *API) getSecret(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	resp, err := call(r.Context(), a.Client.GetSecret, &musterv1.GetSecretRequest{Secret: name}, "secret", name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, convert.DockerSecret(resp.GetSecret()))
}

func (a *API) removeSecret(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	if _, err := call(r.Context(), a.Client.RemoveSecret, &musterv1.RemoveSecretRequest{Secret: name}, "secret", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) updateSecret(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	at, err := version(r, "secret")
	if err != nil {
		return err
	}
	var in swarm.SecretSpec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	if _, err := call(r.Context(), a.Client.UpdateSecret, &musterv1.UpdateSecretRequest{Secret: name, Version: at, Spec: convert.SecretSpec(in)}, "secret", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a *API) listConfigs(w http.ResponseWriter, r *http.Request) error {
	f, err := server.ReadFilters(r, "id", "name", "label")
	if err != nil {
		return err
	}
	configs, err := a.configs(r.Context(), &musterv1.ListConfigsRequest{NamePrefixes: f["name"], IdPrefixes: f["id"], Labels: f.Labels("label")})
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, list(configs, convert.DockerConfig))
}

// configs lists all that pass a request, without their data.
func (a *API) configs(ctx context.Context, req *musterv1.ListConfigsRequest) ([]*musterv1.Config, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Config, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListConfigs(ctx, req)
		return resp.GetConfigs(), resp.GetNextPageToken(), err
	})
}

func (a *API) createConfig(w http.ResponseWriter, r *http.Request) error {
	var in swarm.ConfigSpec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	resp, err := call(r.Context(), a.Client.CreateConfig, &musterv1.CreateConfigRequest{Spec: convert.ConfigSpec(in)}, "config", in.Name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusCreated, swarm.ConfigCreateResponse{ID: resp.GetConfig().GetId()})
}

func (a *API) getConfig(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	resp, err := call(r.Context(), a.Client.GetConfig, &musterv1.GetConfigRequest{Config: name}, "config", name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, convert.DockerConfig(resp.GetConfig()))
}

func (a *API) removeConfig(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	if _, err := call(r.Context(), a.Client.RemoveConfig, &musterv1.RemoveConfigRequest{Config: name}, "config", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) updateConfig(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	at, err := version(r, "config")
	if err != nil {
		return err
	}
	var in swarm.ConfigSpec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	if _, err := call(r.Context(), a.Client.UpdateConfig, &musterv1.UpdateConfigRequest{Config: name, Version: at, Spec: convert.ConfigSpec(in)}, "config", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
