package cli

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
)

func TestParseSecretAndConfig(t *testing.T) {
	for in, want := range map[string]string{
		"app": `{"secretName":"app"}`,
		"source=app,target=/etc/app,uid=1,gid=2,mode=0440": `{"secretName":"app","file":{"name":"/etc/app","uid":"1","gid":"2","mode":288}}`,
		"src=app,mode=400,on-change=signal,signal=HUP":     `{"secretName":"app","file":{"mode":256},"onChange":{"action":"SIGNAL","signal":"HUP"}}`,
		"source=app,on-change=restart":                     `{"secretName":"app","onChange":{"action":"RESTART"}}`,
	} {
		secret, err := parseSecret(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got, _ := protojson.Marshal(secret); strings.ReplaceAll(string(got), " ", "") != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
		config, err := parseConfig(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got, _ := protojson.Marshal(config); strings.ReplaceAll(string(got), " ", "") != strings.Replace(want, "secretName", "configName", 1) {
			t.Errorf("%s: %s", in, got)
		}
	}
	for in, want := range map[string]string{
		"target=/a": "no source", "source=a,mode=0999": "octal", "source=a,mode=7777": "octal", "source=a,colour=red": `"colour"`,
		"source=a,on-change=dance": "on-change", "source=": "no source", "": "no source",
	} {
		if _, err := parseSecret(in); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--secret") {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}
