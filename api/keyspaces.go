package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Keyspace is a keyspace document in force.
type Keyspace struct {
	Keyspace string          `json:"keyspace" example:"parcelbird"`
	Version  int             `json:"version" doc:"Of the document, from 1." example:"1"`
	Document json.RawMessage `json:"document" doc:"The whole document, defaults filled in."`
	Owners   *int            `json:"owners,omitempty" doc:"Only in the list, with count=true, for who sees all owners."`
	Active   *int            `json:"active_keys,omitempty" doc:"Likewise: keys that are neither revoked, deleted nor expired."`
	Changed  *bool           `json:"changed,omitempty" doc:"Answered when configuring: false when the document was in force already, and nothing was recorded."`
}

// DryRun is what configuring a keyspace would record.
type DryRun struct {
	DryRun bool              `json:"dry_run" doc:"Always true: nothing was recorded."`
	Events []events.Envelope `json:"events" nullable:"false" doc:"What would be recorded; empty when nothing would change."`
}

func keyspaceETag(k *domain.Keyspace) string { return strconv.Quote(strconv.Itoa(k.DocumentVersion)) }

func keyspaceView(k *domain.Keyspace) Keyspace {
	return Keyspace{Keyspace: k.Document.Keyspace, Version: k.DocumentVersion, Document: k.Document.JSON()}
}

// KeyspacePath names a keyspace. Huma sees the fields of embedded structs only
// where these are exported.
type KeyspacePath struct {
	Keyspace string `path:"ks" doc:"The keyspace's id." example:"parcelbird"`
}

func (a *API) keyspaces() {
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "configure-keyspace", Method: http.MethodPut, Path: "/v1/keyspaces/{ks}", Tags: []string{"Keyspaces"},
			Summary:     "Configure a keyspace",
			Description: "Puts a keyspace document in force. The same document again records nothing. A document that removes a plan, scope or environment in use is refused with the list of users; everything that is wrong is answered at once, with path and line.",
			Parameters: []*huma.Param{
				pathParam("ks", "The keyspace's id, the same as in the document.", "parcelbird"),
				queryParam("dry_run", "true: answer the events that would be recorded, and record nothing.", &huma.Schema{Type: "boolean"}),
				headerParam("If-Match", `The version of the document as it was read, "0" where there was none; refused with 412 when it is another one now.`, &huma.Schema{Type: "string", Examples: []any{`"1"`}}),
			},
			RequestBody: a.documentBody(),
			Responses: map[string]*huma.Response{"200": a.answer("The document in force, or with dry_run the events.",
				&huma.Schema{OneOf: []*huma.Schema{a.schema(Keyspace{}), a.schema(DryRun{})}})},
		},
		action: domain.Configure, command: true, accepts: documentTypes,
	}, a.configureKeyspace)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-keyspaces", Method: http.MethodGet, Path: "/v1/keyspaces", Tags: []string{"Keyspaces"},
			Summary: "List the keyspaces", Description: "All keyspaces by id, each with the document in force.",
		},
		action: domain.KeyspacesRead, read: true,
	}, a.listKeyspaces)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-keyspace", Method: http.MethodGet, Path: "/v1/keyspaces/{ks}", Tags: []string{"Keyspaces"},
			Summary: "Show a keyspace", Description: "The document in force and its version.",
		},
		action: domain.KeyspacesRead, read: true,
	}, a.getKeyspace)
}

var documentTypes = []string{"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "application/json"}

func (a *API) documentBody() *huma.RequestBody {
	content := map[string]*huma.MediaType{}
	for _, t := range documentTypes {
		content[t] = &huma.MediaType{Schema: &huma.Schema{Type: "object", AdditionalProperties: true,
			Description: "A keyspace document: the reference of its fields is in the documentation."}}
	}
	return &huma.RequestBody{Required: true, Content: content, Description: "The whole document, YAML or JSON as Content-Type says."}
}

func (a *API) configureKeyspace(w http.ResponseWriter, r *http.Request, c *call) error {
	q, err := a.request(r.Context())
	if err != nil {
		return err
	}
	dry, err := strictBool(r, "dry_run")
	if err != nil {
		return err
	}
	doc, err := domain.ParseDocument(c.body)
	if err != nil {
		return err
	}
	if id := r.PathValue("ks"); id != doc.Keyspace {
		return unprocessable(Detail{Path: "keyspace", Message: "is not the keyspace of the path", Fix: "write the same id in both"})
	}
	res, err := a.Commands.ConfigureKeyspace(r.Context(), q, doc, dry)
	if err != nil {
		return err
	}
	w.Header().Set("Ledger-Sequence", strconv.FormatUint(res.Sequence, 10))
	if dry {
		writeJSON(w, http.StatusOK, "application/json", DryRun{DryRun: true, Events: append([]events.Envelope{}, res.Facts...)})
		return nil
	}
	v := keyspaceView(a.Ring.Keyspace(doc.Keyspace))
	v.Changed = new(len(res.Facts) > 0 || res.Replayed)
	w.Header().Set("ETag", strconv.Quote(strconv.Itoa(v.Version)))
	a.giveReceipts(r.Context(), Changed{LedgerSequence: res.Sequence})
	writeJSON(w, http.StatusOK, "application/json", v)
	return nil
}

type keyspaceList struct {
	Body struct {
		Keyspaces []Keyspace `json:"keyspaces" nullable:"false"`
	} `nameHint:"KeyspaceList"`
}

type listKeyspacesInput struct {
	Count bool `query:"count" doc:"true: how many owners and active keys each has."`
}

func (a *API) listKeyspaces(ctx context.Context, in *listKeyspacesInput) (*keyspaceList, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	out := &keyspaceList{}
	out.Body.Keyspaces = []Keyspace{}
	for _, k := range a.Ring.Keyspaces() {
		if reach := callOf(ctx).authority.Reach; reach == nil || reach.Keyspace == k.Document.Keyspace {
			v := keyspaceView(k)
			if in.Count && reach == nil {
				id, active := k.Document.Keyspace, 0
				owners := a.Ring.Owners(id)
				for _, o := range owners {
					active += a.Ring.ActiveKeys(id, o.ID, a.Now())
				}
				v.Owners, v.Active = new(len(owners)), new(active)
			}
			out.Body.Keyspaces = append(out.Body.Keyspaces, v)
		}
	}
	return out, nil
}

type keyspaceOutput struct {
	LedgerSequence string `header:"Ledger-Sequence" doc:"Only with as_of: the place in LEDGER that the moment is."`
	ETag           string `header:"ETag" doc:"The version of the document, for If-Match."`
	Body           Keyspace
}

type getKeyspaceInput struct {
	KeyspacePath
	AsOf string `query:"as_of" doc:"A time, a sequence of LEDGER, or now: the document that was in force then." example:"2026-01-18T12:00:00.000Z"`
}

func (a *API) getKeyspace(ctx context.Context, in *getKeyspaceInput) (*keyspaceOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	k, err := a.keyspace(ctx, in.Keyspace)
	if err != nil {
		return nil, err
	}
	if in.AsOf != "" {
		return a.keyspaceAsOf(ctx, in.Keyspace, in.AsOf)
	}
	return &keyspaceOutput{ETag: keyspaceETag(k), Body: keyspaceView(k)}, nil
}

// keyspace is one that the caller may see.
func (a *API) keyspace(ctx context.Context, id string) (*domain.Keyspace, error) {
	k := a.Ring.Keyspace(id)
	reach := callOf(ctx).authority.Reach
	if k == nil || id == events.RootKeyspace || reach != nil && reach.Keyspace != id {
		return nil, domain.KeyspaceNotFound()
	}
	return k, nil
}
