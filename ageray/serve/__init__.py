"""The predictor behind HTTP, on Ray Serve. `serve deploy` imports `ageray.serve.app:app`;
`ageray serve` calls `ageray.serve.app.start`.

Three deployments:

    Ingress      speaks HTTP; decodes photos and finds faces in threads
    AgeModel     holds the model; the faces of all requests share its batches
    BatchJobs    runs `ageray score` as processes

A request to an answer, in 14 files:

     1  commands/serve.py         reads the settings, starts the service
     2  serve/app.py              the three deployments, their replicas and resources
     3  serve/middleware.py       API key, size of the body, headers of the answer
     4  serve/routes.py           POST /v1/score; the limit of concurrent requests
     5  serve/uploads.py          body (form or JSON) -> names and bytes of images
     6  serve/ingress.py          images -> faces in threads -> AgeModel -> the answer's images
     7  stages/detect.py          bytes of one image -> rows of its faces
     8  faces/images.py           bytes -> pixels, upright
     9  faces/detect.py           pixels -> boxes and five points (YuNet)
    10  faces/canvases.py         pixels and points -> canvas, from which the input is cut
    11  serve/model.py            rows of several requests -> one batch
    12  stages/predict.py         rows with canvases -> rows with ages
    13  predictor.py              canvases -> network -> age, 90 % interval, posterior
    14  serve/schemas.py          the fields of the JSON answer
"""

from ageray.serve.settings import Service

__all__ = ["Service"]
